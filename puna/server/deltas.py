"""From the engine's token updates to deltas of text, for one prompt or many at once.

It numbers choices (prompt * n + sample), cuts at stop strings and at a deadline, and counts tokens for the usage. It
knows nothing of the shapes that clients see. Closing `answer` aborts what still runs.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from puna.engine.output import SampleText
from puna.engine.params import EngineRequest, FinishReason, PositionLogprobs, SampleUpdate, SamplingParams
from puna.errors import EngineError, OverloadedError
from puna.server.answers import CompletionTokensDetails, PromptTokensDetails, Usage
from puna.server.asked import ASKED
from puna.server.best_of import best_samples
from puna.server.errors import DeadlineError

if TYPE_CHECKING:
    from puna.engine.meter import RequestWatch
    from puna.engine.supervisor import Supervisor
    from puna.models.tokenizer import Tokenizer
    from puna.server.limits import Tenant

QUEUED_DELTAS = 64
DEADLINE = "deadline"  # the stop_reason of a choice that was not waited for any longer


@dataclass(frozen=True)
class Heading:
    """What every chunk of one answer repeats."""

    id: str
    created: int
    model: str
    fingerprint: str


@dataclass(frozen=True)
class Delta:
    """News of one choice. `seed`, `cached_tokens` and `prompt_logprobs` come with the first delta of a choice.
    `stop_reason`: the stop string or token that ended it, or DEADLINE. `discarded_tokens`: drawn for choices that are
    not returned; with a prompt's first delta."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[PositionLogprobs]
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    cached_tokens: int | None = None
    seed: int | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    discarded_tokens: int = 0

    def without_answer(self) -> Delta:
        """The same news with nothing generated: for a client that only wants its prompt scored."""
        return dataclasses.replace(self, text="", token_ids=[], logprobs=[])


def known_seed(delta: Delta) -> int | msgspec.UnsetType:
    """The seed as it goes into a choice: only where the delta brings it."""
    return msgspec.UNSET if delta.seed is None else delta.seed


def known_stop(delta: Delta) -> str | int | msgspec.UnsetType:
    return msgspec.UNSET if delta.stop_reason is None else delta.stop_reason


@dataclass
class UsageCount:
    """Adds up what an answer used. `prompt_tokens` counts each prompt once, whatever n is."""

    prompt_tokens: int
    completion_tokens: int = 0
    reasoning_tokens: int | None = None  # of the completion's; None where the model does not reason in marks
    cached: dict[int, int] = field(default_factory=dict)  # by prompt
    samples: int = 1

    def add(self, delta: Delta) -> None:
        self.completion_tokens += len(delta.token_ids)
        if delta.cached_tokens is not None:
            self.cached.setdefault(delta.index // self.samples, delta.cached_tokens)

    def usage(self) -> Usage:
        return Usage(
            self.prompt_tokens,
            self.completion_tokens,
            self.prompt_tokens + self.completion_tokens,
            PromptTokensDetails(sum(self.cached.values())),
            msgspec.UNSET if self.reasoning_tokens is None else CompletionTokensDetails(self.reasoning_tokens),
        )


async def answer(
    client: Supervisor,
    tokenizer: Tokenizer,
    requests: list[EngineRequest],
    tenant: Tenant,
    until: float | None = None,
    shown: frozenset[int] = frozenset(),
) -> AsyncGenerator[Delta]:
    """Deltas of all requests as they come; one request a prompt, all with the same n. Tokens are taken from the
    tenant's allowance: LimitError where the prompts' are not there.

    `until`: the moment (time.monotonic) at which all choices that still run end, with finish_reason "length" and
    stop_reason DEADLINE. DeadlineError where there is not one token by then. `shown`: special tokens
    that count as text.
    """
    has_begun = False
    prompt_tokens = sum(len(request.prompt_token_ids) for request in requests)
    tenant.admit(prompt_tokens)
    try:
        async with aclosing(_all(client, tokenizer, requests, until, shown)) as deltas:
            async for delta in deltas:
                tenant.spend(len(delta.token_ids) + delta.discarded_tokens)
                has_begun = has_begun or bool(delta.token_ids)
                if delta.stop_reason == DEADLINE and delta.finish_reason == "length" and not has_begun:
                    raise DeadlineError(
                        "the deadline passed before the first token; allow more time, or try when fewer requests wait"
                    )
                yield delta
    except OverloadedError:
        tenant.spend(-prompt_tokens)
        raise


async def _all(
    client: Supervisor,
    tokenizer: Tokenizer,
    requests: list[EngineRequest],
    until: float | None,
    shown: frozenset[int],
) -> AsyncGenerator[Delta]:
    if len(requests) == 1:
        async with aclosing(_one(client, tokenizer, requests[0], 0, until, shown)) as deltas:
            async for delta in deltas:
                yield delta
        return
    arrived: asyncio.Queue[Delta | BaseException | None] = asyncio.Queue(QUEUED_DELTAS)

    async def pump(request: EngineRequest, first_index: int) -> None:
        try:
            async with aclosing(_one(client, tokenizer, request, first_index, until, shown)) as deltas:
                async for delta in deltas:
                    await arrived.put(delta)
            await arrived.put(None)
        except Exception as error:
            await arrived.put(error)

    tasks = [asyncio.create_task(pump(request, i * request.params.n)) for i, request in enumerate(requests)]
    try:
        running = len(tasks)
        while running:
            news = await arrived.get()
            if isinstance(news, BaseException):
                raise news
            if news is None:
                running -= 1
            else:
                yield news
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _one(
    client: Supervisor,
    tokenizer: Tokenizer,
    request: EngineRequest,
    first_index: int,
    until: float | None,
    shown: frozenset[int],
) -> AsyncGenerator[Delta]:
    params = request.params
    with _watch(client, request) as watch:
        deltas = _drawn(client, tokenizer, request, first_index, until, shown, watch)
        if params.chooses:
            deltas = best_samples(deltas, params, first_index)
        async with aclosing(deltas):
            async for delta in deltas:
                watch.note(delta.index - first_index, len(delta.token_ids), delta.finish_reason, delta.discarded_tokens)
                yield delta


async def _drawn(
    client: Supervisor,
    tokenizer: Tokenizer,
    request: EngineRequest,
    first_index: int,
    until: float | None,
    shown: frozenset[int],
    watch: RequestWatch,
) -> AsyncGenerator[Delta]:
    """Deltas of all samples, as the engine brings them."""
    params = request.params
    texts = [_sample_text(tokenizer, request.prompt_token_ids, params, shown) for _ in range(params.samples)]
    running = params.samples
    async with aclosing(client.generate(request)) as updates:
        async for update in updates if until is None else _in_time(updates, until):
            sample = texts[update.index]
            if sample.finished:
                continue
            delta = sample.push(update)
            if update.cached_tokens is not None:
                watch.note_start(update.cached_tokens, update.queue_s or 0.0)
            if delta.finish_reason in ("error", "abort"):
                raise EngineError(delta.error or "the engine ended this request before it was done; send it again")
            running -= delta.finish_reason is not None
            if delta.abort and running:
                await client.abort(request.request_id, update.index)
            yield Delta(
                index=first_index + update.index,
                text=delta.text,
                token_ids=delta.token_ids,
                logprobs=delta.logprobs or [],
                prompt_logprobs=update.prompt_logprobs,
                cached_tokens=update.cached_tokens,
                seed=update.seed,
                finish_reason=delta.finish_reason,
                stop_reason=delta.stop_reason,
                discarded_tokens=update.discarded_tokens,
            )
            if not running:
                return  # closing `updates` aborts what a stop string cut short
    for index, sample in enumerate(texts):
        if not sample.finished:  # its time is over
            held = sample.push(SampleUpdate(request_id="", index=index, token_ids=[], finish_reason="length")).text
            yield Delta(first_index + index, held, [], [], finish_reason="length", stop_reason=DEADLINE)


async def _in_time(updates: AsyncGenerator[SampleUpdate], until: float) -> AsyncGenerator[SampleUpdate]:
    """What comes until then. Cutting it off closes `updates`, which aborts the request."""
    while (left := until - time.monotonic()) > 0:
        try:
            async with asyncio.timeout(left):
                update = await anext(updates)
        except (TimeoutError, StopAsyncIteration):
            return
        yield update


def _watch(client: Supervisor, request: EngineRequest) -> RequestWatch:
    """Counts what becomes of the request, and tells whoever keeps account of the HTTP request that it belongs to."""
    asked = ASKED.get()
    watch = client.meter.watch(request, None if asked is None else asked.since_s)
    if asked is not None:
        asked.watches.append(watch)
    return watch


def _sample_text(
    tokenizer: Tokenizer, prompt_ids: list[int], params: SamplingParams, shown: frozenset[int]
) -> SampleText:
    skip = params.skip_special_tokens
    return SampleText(tokenizer.detokenizer(prompt_ids, skip_special_tokens=skip, shown=shown), params)
