"""Log-probabilities as clients read them: tokens as text and bytes, numbers that JSON can hold.

A token that is half a character has text with U+FFFD in chat answers, and `bytes:\\xe2\\x82` in text completions,
where the text is a key. Minus infinity is sent as -9999.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from puna.engine.params import PositionLogprobs
from puna.server.answers import ChatLogprob, ChatLogprobs, CompletionLogprobs, PromptLogprobs, TopLogprob

if TYPE_CHECKING:
    from puna.models.tokenizer import Tokenizer

LOWEST = -9999.0


def chat_logprobs(tokenizer: Tokenizer, positions: list[PositionLogprobs]) -> ChatLogprobs:
    return ChatLogprobs([_chat(tokenizer, position) for position in positions])


def completion_logprobs(
    tokenizer: Tokenizer, token_ids: list[int], positions: list[PositionLogprobs | None], offsets: list[int]
) -> CompletionLogprobs:
    """`positions[i]` is of `token_ids[i]`; None where nothing is known (the first token of a prompt)."""
    return CompletionLogprobs(
        tokens=[_key(tokenizer, token) for token in token_ids],
        token_logprobs=[None if p is None else _finite(p.token.logprob) for p in positions],
        top_logprobs=[
            None if p is None else {_key(tokenizer, t.token_id): _finite(t.logprob) for t in [*p.top, p.token]}
            for p in positions
        ],
        text_offset=offsets,
    )


def prompt_logprobs(tokenizer: Tokenizer, positions: list[PositionLogprobs | None]) -> PromptLogprobs:
    """vLLM's shape: null, then token id -> logprob, rank, decoded_token."""
    return [
        None
        if position is None
        else {
            str(t.token_id): {
                "logprob": _finite(t.logprob),
                "rank": t.rank,
                "decoded_token": tokenizer.token_bytes(t.token_id).decode("utf-8", "replace"),
            }
            for t in [position.token, *position.top]
        }
        for position in positions
    ]


def _chat(tokenizer: Tokenizer, position: PositionLogprobs) -> ChatLogprob:
    raw = tokenizer.token_bytes(position.token.token_id)
    top = []
    for token in position.top:
        spelled = tokenizer.token_bytes(token.token_id)
        top.append(TopLogprob(spelled.decode("utf-8", "replace"), _finite(token.logprob), list(spelled)))
    return ChatLogprob(raw.decode("utf-8", "replace"), _finite(position.token.logprob), list(raw), top)


def _key(tokenizer: Tokenizer, token_id: int) -> str:
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(value: float) -> float:
    return max(value, LOWEST)
