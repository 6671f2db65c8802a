"""Text completions: deltas of answers become chunks, and chunks become a stream or one whole body.

It knows echo, text offsets and how prompts and samples are numbered; it knows nothing of HTTP or the engine.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msgspec import UNSET, UnsetType

from puna.engine.params import PositionLogprobs
from puna.server.answers import Completion, CompletionChoice, CompletionLogprobs, Usage
from puna.server.deltas import Delta, Heading, UsageCount, known_seed, known_stop
from puna.server.logprobs import completion_logprobs, prompt_logprobs
from puna.server.prompts import Prompt

if TYPE_CHECKING:
    from puna.models.detokenizer import Detokenizer
    from puna.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class CompletionShape:
    """What a client wants to see of each choice."""

    echo: bool
    only_echo: bool  # max_tokens was 0: the token that was drawn is dropped
    logprobs: int | None
    prompt_logprobs: int | None
    token_ids: bool
    include_usage: bool
    continuous_usage: bool = False


@dataclass
class _Offsets:
    """Where each token's text begins in a choice's text, in characters."""

    detokenizer: Detokenizer
    length: int = 0

    def of(self, token_ids: list[int]) -> list[int]:
        offsets = []
        for token in token_ids:
            offsets.append(self.length)
            self.length += len(self.detokenizer.push(token))
        return offsets


async def completion_chunks(
    heading: Heading,
    prompts: list[Prompt],
    samples: int,
    deltas: AsyncGenerator[Delta],
    count: UsageCount,
    tokenizer: Tokenizer,
    shape: CompletionShape,
) -> AsyncGenerator[Completion]:
    """Chunks in order of arrival; choice index = prompt * n + sample."""
    offsets: dict[int, _Offsets] = {}

    def chunk(choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        sent: Usage | UnsetType | None = UNSET
        if shape.include_usage:
            sent = count.usage() if shape.continuous_usage else usage
        return Completion(
            id=heading.id,
            created=heading.created,
            model=heading.model,
            system_fingerprint=heading.fingerprint,
            choices=choices,
            usage=sent,
        )

    async with aclosing(deltas):
        async for delta in deltas:
            if shape.only_echo:
                delta = delta.without_answer()
            count.add(delta)
            prompt = prompts[delta.index // samples]
            if delta.index not in offsets:
                offsets[delta.index] = _Offsets(tokenizer.detokenizer(skip_special_tokens=False))
                opening = _opening(delta, prompt, offsets[delta.index], tokenizer, shape)
                if opening is not None:
                    yield chunk([opening])
            logprobs = None
            if shape.logprobs is not None and delta.logprobs:
                places = offsets[delta.index].of(delta.token_ids)
                positions: list[PositionLogprobs | None] = list(delta.logprobs)
                logprobs = completion_logprobs(tokenizer, delta.token_ids, positions, places)
            token_ids = delta.token_ids if shape.token_ids else UNSET
            if delta.text or logprobs or delta.finish_reason or delta.seed is not None or token_ids:
                news = CompletionChoice(
                    index=delta.index,
                    text=delta.text,
                    logprobs=logprobs,
                    finish_reason=delta.finish_reason,
                    stop_reason=known_stop(delta),
                    token_ids=token_ids,
                    seed=known_seed(delta),
                )
                yield chunk([news])
    if shape.include_usage:
        yield chunk([], count.usage())


def _opening(
    delta: Delta, prompt: Prompt, offsets: _Offsets, tokenizer: Tokenizer, shape: CompletionShape
) -> CompletionChoice | None:
    """What comes before a choice's own text: the echoed prompt, the prompt's log-probabilities, what was cut off it."""
    known = delta.prompt_logprobs
    logprobs = None
    if shape.echo and shape.logprobs is not None and known is not None:
        kept = [None if p is None else PositionLogprobs(p.token, p.top[: shape.logprobs]) for p in known]
        logprobs = completion_logprobs(tokenizer, prompt.token_ids, kept, offsets.of(prompt.token_ids))
    scored: Any = UNSET
    if shape.prompt_logprobs is not None and known is not None:
        kept = [None if p is None else PositionLogprobs(p.token, p.top[: shape.prompt_logprobs]) for p in known]
        scored = prompt_logprobs(tokenizer, kept)
    if not (shape.echo or shape.token_ids or prompt.truncated_tokens) and scored is UNSET:
        return None
    return CompletionChoice(
        index=delta.index,
        text=prompt.text if shape.echo else "",
        logprobs=logprobs,
        prompt_logprobs=scored,
        prompt_token_ids=prompt.token_ids if shape.token_ids else UNSET,
        truncated_tokens=prompt.truncated_tokens or UNSET,
    )


@dataclass
class _Choice:
    text: list[str] = field(default_factory=list)
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    prompt_logprobs: Any = UNSET
    truncated_tokens: int | UnsetType = UNSET


async def whole_completion(chunks: AsyncIterator[Completion], count: UsageCount) -> Completion:
    """The body that says what the stream would have said."""
    choices: dict[int, _Choice] = {}
    last: Completion | None = None
    async for last in chunks:
        for part in last.choices:
            choice = choices.setdefault(part.index, _Choice())
            choice.text.append(part.text)
            choice.logprobs = _joined(choice.logprobs, part.logprobs)
            choice.finish_reason = part.finish_reason or choice.finish_reason
            choice.stop_reason = choice.stop_reason if part.stop_reason is UNSET else part.stop_reason
            if part.token_ids is not UNSET:
                choice.token_ids = [*(choice.token_ids or ()), *part.token_ids]
            choice.prompt_token_ids = part.prompt_token_ids or choice.prompt_token_ids
            choice.seed = choice.seed if part.seed is UNSET else part.seed
            choice.truncated_tokens = part.truncated_tokens or choice.truncated_tokens
            if part.prompt_logprobs is not UNSET:
                choice.prompt_logprobs = part.prompt_logprobs
    assert last is not None, "an answer has at least a finish"
    return Completion(
        id=last.id,
        created=last.created,
        model=last.model,
        system_fingerprint=last.system_fingerprint,
        choices=[
            CompletionChoice(
                index=index,
                text="".join(choice.text),
                logprobs=choice.logprobs,
                finish_reason=choice.finish_reason,
                stop_reason=choice.stop_reason,
                token_ids=choice.token_ids,
                prompt_token_ids=choice.prompt_token_ids,
                seed=choice.seed,
                prompt_logprobs=choice.prompt_logprobs,
                truncated_tokens=choice.truncated_tokens,
            )
            for index, choice in sorted(choices.items())
        ],
        usage=count.usage(),
    )


def _joined(before: CompletionLogprobs | None, more: CompletionLogprobs | None) -> CompletionLogprobs | None:
    if before is None or more is None:
        return before or more
    return CompletionLogprobs(
        before.tokens + more.tokens,
        before.token_logprobs + more.token_logprobs,
        before.top_logprobs + more.top_logprobs,
        before.text_offset + more.text_offset,
    )
