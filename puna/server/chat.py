"""Chat completions: deltas of an answer become chunks, and chunks become a stream or one whole body.

It knows OpenAI's order of chunks (a role, text, one finish a choice, usage); it knows nothing of HTTP or the engine.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec import UNSET, UnsetType

from puna.server.answers import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprob,
    ChatLogprobs,
    ChatMessage,
    Usage,
)
from puna.server.deltas import Delta, Heading, UsageCount, known_seed
from puna.server.logprobs import chat_logprobs

if TYPE_CHECKING:
    from puna.models.tokenizer import Tokenizer


async def chat_chunks(
    heading: Heading,
    deltas: AsyncGenerator[Delta],
    count: UsageCount,
    tokenizer: Tokenizer,
    *,
    truncated_tokens: int,
    want_logprobs: bool,
    include_usage: bool,
    continuous_usage: bool = False,
) -> AsyncGenerator[ChatChunk]:
    """Chunks in order of arrival. Choices of n > 1 interleave; each begins with its role, and with what was cut off the
    prompt, and ends with its finish."""
    begun: set[int] = set()

    def chunk(choices: list[ChatChunkChoice], usage: Usage | None = None) -> ChatChunk:
        sent: Usage | UnsetType | None = UNSET
        if include_usage:
            sent = count.usage() if continuous_usage else usage
        return ChatChunk(
            id=heading.id,
            created=heading.created,
            model=heading.model,
            system_fingerprint=heading.fingerprint,
            choices=choices,
            usage=sent,
        )

    async with aclosing(deltas):
        async for delta in deltas:
            count.add(delta)
            if delta.index not in begun:
                begun.add(delta.index)
                role = ChatDelta(role="assistant", content="")
                cut = truncated_tokens or UNSET
                opening = ChatChunkChoice(index=delta.index, delta=role, seed=known_seed(delta), truncated_tokens=cut)
                yield chunk([opening])
            logprobs = chat_logprobs(tokenizer, delta.logprobs) if want_logprobs and delta.logprobs else None
            if delta.text or logprobs:
                text = ChatDelta(content=delta.text)
                yield chunk([ChatChunkChoice(index=delta.index, delta=text, logprobs=logprobs)])
            if delta.finish_reason:
                end = ChatChunkChoice(index=delta.index, delta=ChatDelta(), finish_reason=delta.finish_reason)
                yield chunk([end])
    if include_usage:
        yield chunk([], count.usage())


@dataclass
class _Choice:
    text: list[str] = field(default_factory=list)
    logprobs: list[ChatLogprob] | None = None
    finish_reason: str = "stop"
    seed: int | UnsetType = UNSET
    truncated_tokens: int | UnsetType = UNSET


async def whole_chat(chunks: AsyncIterator[ChatChunk], count: UsageCount) -> ChatCompletion:
    """The body that says what the stream would have said."""
    choices: dict[int, _Choice] = {}
    last: ChatChunk | None = None
    async for last in chunks:
        for part in last.choices:
            choice = choices.setdefault(part.index, _Choice())
            choice.text.append(part.delta.content or "")
            if part.logprobs is not None:
                choice.logprobs = [*(choice.logprobs or []), *part.logprobs.content]
            choice.seed = choice.seed if part.seed is UNSET else part.seed
            choice.truncated_tokens = part.truncated_tokens or choice.truncated_tokens
            choice.finish_reason = part.finish_reason or choice.finish_reason
    assert last is not None, "an answer has at least a role and a finish"
    return ChatCompletion(
        id=last.id,
        created=last.created,
        model=last.model,
        system_fingerprint=last.system_fingerprint,
        choices=[
            ChatChoice(
                index=index,
                message=ChatMessage("".join(choice.text)),
                logprobs=None if choice.logprobs is None else ChatLogprobs(choice.logprobs),
                finish_reason=choice.finish_reason,
                seed=choice.seed,
                truncated_tokens=choice.truncated_tokens,
            )
            for index, choice in sorted(choices.items())
        ],
        usage=count.usage(),
    )
