"""Chat completions: deltas of an answer become chunks, and chunks become a stream or one whole body.

It knows OpenAI's order of chunks (a role, text, one finish a choice, usage); it knows nothing of HTTP or the engine.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
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
    PromptLogprobs,
    Usage,
)
from puna.server.chat_pieces import WholeMessage, chat_deltas
from puna.server.deltas import Delta, Heading, UsageCount, known_seed, known_stop
from puna.server.dialect import Dialect
from puna.server.logprobs import chat_logprobs, prompt_logprobs
from puna.server.parts import CALLED, AnswerParts
from puna.server.prompts import Prompt

if TYPE_CHECKING:
    from puna.models.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class ChatShape:
    """What a client wants to see."""

    dialect: Dialect
    logprobs: bool
    prompt_logprobs: bool
    token_ids: bool
    include_usage: bool
    continuous_usage: bool
    old_functions: bool = False  # a call is shown as `function_call`, as before there were tools


async def chat_chunks(
    heading: Heading,
    prompt: Prompt,
    deltas: AsyncGenerator[Delta],
    count: UsageCount,
    tokenizer: Tokenizer,
    shape: ChatShape,
    parts: AnswerParts | None = None,
) -> AsyncGenerator[ChatChunk]:
    """Chunks in order of arrival. Choices of n > 1 interleave; each begins with its role, and with what was cut off the
    prompt, and ends with its finish. What is said of the prompt comes with the very first. Where an answer can be more
    than content, `parts` take it apart."""
    begun: set[int] = set()

    def chunk(choices: list[ChatChunkChoice], usage: Usage | None = None, first: Delta | None = None) -> ChatChunk:
        sent: Usage | UnsetType | None = UNSET
        if shape.include_usage:
            sent = count.usage() if shape.continuous_usage else usage
        scored: PromptLogprobs | UnsetType = UNSET
        if first is not None and shape.prompt_logprobs and first.prompt_logprobs is not None:
            scored = prompt_logprobs(tokenizer, first.prompt_logprobs)
        return ChatChunk(
            id=heading.id,
            created=heading.created,
            model=heading.model,
            system_fingerprint=heading.fingerprint,
            choices=choices,
            usage=sent,
            prompt_token_ids=prompt.token_ids if first is not None and shape.token_ids else UNSET,
            prompt_logprobs=scored,
        )

    async with aclosing(deltas):
        async for delta in deltas:
            count.add(delta)
            if delta.index not in begun:
                role = ChatDelta(role="assistant", content=None if shape.dialect.null_opening else "")
                cut = prompt.truncated_tokens or UNSET
                opening = ChatChunkChoice(index=delta.index, delta=role, seed=known_seed(delta), truncated_tokens=cut)
                yield chunk([opening], first=None if begun else delta)
                begun.add(delta.index)
            if parts is None:
                news = _news(delta, [ChatDelta(content=delta.text)] if delta.text else [], tokenizer, shape)
            else:
                said = chat_deltas(parts.read(delta), old_functions=shape.old_functions)
                count.reasoning_tokens = parts.reasoning_tokens
                news = _news(delta, said, tokenizer, shape, _reason(parts.finish_reason(delta), shape))
            for choice in news:
                yield chunk([choice])
    if shape.include_usage:
        yield chunk([], count.usage())


def _news(
    delta: Delta, said: list[ChatDelta], tokenizer: Tokenizer, shape: ChatShape, finish_reason: str | None = None
) -> Iterator[ChatChunkChoice]:
    """What was said and then the finish, or both in one, as the dialect has it. Log-probabilities and token ids come
    with the first."""
    logprobs = chat_logprobs(tokenizer, delta.logprobs) if shape.logprobs and delta.logprobs else None
    token_ids = delta.token_ids if shape.token_ids and delta.token_ids else UNSET
    finish_reason = finish_reason or delta.finish_reason
    with_text = finish_reason is not None and shape.dialect.finish_with_text
    if not said and (with_text or logprobs or token_ids is not UNSET):
        said = [ChatDelta(content="")]
    for number, piece in enumerate(said, 1):
        is_finish = with_text and number == len(said)
        yield ChatChunkChoice(
            index=delta.index,
            delta=piece,
            logprobs=logprobs,
            token_ids=token_ids,
            finish_reason=finish_reason if is_finish else None,
            stop_reason=known_stop(delta) if is_finish else UNSET,
        )
        logprobs, token_ids = None, UNSET
    if finish_reason and not with_text:
        yield ChatChunkChoice(
            index=delta.index, delta=ChatDelta(), finish_reason=finish_reason, stop_reason=known_stop(delta)
        )


def _reason(reason: str | None, shape: ChatShape) -> str | None:
    return "function_call" if reason == CALLED and shape.old_functions else reason


@dataclass
class _Choice:
    message: WholeMessage = field(default_factory=WholeMessage)
    logprobs: list[ChatLogprob] | None = None
    finish_reason: str = "stop"
    stop_reason: str | int | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    truncated_tokens: int | UnsetType = UNSET


async def whole_chat(chunks: AsyncIterator[ChatChunk], count: UsageCount) -> ChatCompletion:
    """The body that says what the stream would have said."""
    choices: dict[int, _Choice] = {}
    first: ChatChunk | None = None
    async for chunk in chunks:
        first = first or chunk
        for part in chunk.choices:
            choice = choices.setdefault(part.index, _Choice())
            choice.message.add(part.delta)
            if part.logprobs is not None:
                choice.logprobs = [*(choice.logprobs or []), *part.logprobs.content]
            choice.seed = choice.seed if part.seed is UNSET else part.seed
            choice.truncated_tokens = part.truncated_tokens or choice.truncated_tokens
            choice.finish_reason = part.finish_reason or choice.finish_reason
            choice.stop_reason = choice.stop_reason if part.stop_reason is UNSET else part.stop_reason
            if part.token_ids is not UNSET:
                choice.token_ids = [*(choice.token_ids or ()), *part.token_ids]
    assert first is not None, "an answer has at least a role and a finish"
    return ChatCompletion(
        id=first.id,
        created=first.created,
        model=first.model,
        system_fingerprint=first.system_fingerprint,
        choices=[
            ChatChoice(
                index=index,
                message=choice.message.whole(),
                logprobs=None if choice.logprobs is None else ChatLogprobs(choice.logprobs),
                finish_reason=choice.finish_reason,
                stop_reason=choice.stop_reason,
                token_ids=choice.token_ids,
                seed=choice.seed,
                truncated_tokens=choice.truncated_tokens,
            )
            for index, choice in sorted(choices.items())
        ],
        usage=count.usage(),
        prompt_token_ids=first.prompt_token_ids,
        prompt_logprobs=first.prompt_logprobs,
    )
