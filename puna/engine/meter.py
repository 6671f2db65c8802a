"""What requests took, as their clients had it: waiting, first tokens, gaps, ends, through any number of engines.

A token costs a look at the clock and one histogram; everything else is counted once a request or once a sample. Each of
n samples counts as an answer of its own. Knows no text, no HTTP and no names of metrics.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from types import TracebackType

from puna.engine.histogram import FIRST_TOKEN_S, REQUEST_S, TOKEN_GAP_S, Histogram, lengths_up_to
from puna.engine.params import EngineRequest, FinishReason
from puna.errors import EngineError, PunaError

REASONS: tuple[FinishReason, ...] = ("stop", "length", "abort", "error")


class Meter:
    """Sums since the server's start. Nothing here goes backwards."""

    def __init__(self, max_model_len: int) -> None:
        lengths = lengths_up_to(max_model_len)
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generated_tokens = 0
        self.discarded_tokens = 0
        self.refused = 0
        self.finished: dict[FinishReason, int] = dict.fromkeys(REASONS, 0)
        self.first_token_s = Histogram(FIRST_TOKEN_S)
        self.token_gap_s = Histogram(TOKEN_GAP_S)
        self.token_mean_s = Histogram(TOKEN_GAP_S)
        self.whole_s = Histogram(REQUEST_S)
        self.queue_s = Histogram(REQUEST_S)
        self.prefill_s = Histogram(REQUEST_S)
        self.decode_s = Histogram(REQUEST_S)
        self.prompt_lengths = Histogram(lengths)
        self.answer_lengths = Histogram(lengths)

    def watch(self, request: EngineRequest, since_s: float | None = None) -> RequestWatch:
        """`since_s`: when the client asked, on the monotonic clock; now, if that is not known."""
        return RequestWatch(self, request, time.monotonic() if since_s is None else since_s)


@dataclass(slots=True, eq=False)
class _Answer:
    first_s: float = 0.0
    last_s: float = 0.0
    tokens: int = 0
    finish_reason: FinishReason | None = None


@dataclass(slots=True, eq=False)
class RequestWatch:
    """One request from when it was asked to its end; leaving the `with` ends what has not ended."""

    meter: Meter
    request: EngineRequest
    since_s: float
    handed_s: float = field(default_factory=time.monotonic)
    answers: list[_Answer] = field(init=False)
    cached_tokens: int = 0
    first_token_s: float | None = None  # after `since_s`

    def __post_init__(self) -> None:
        self.answers = [_Answer() for _ in range(self.request.params.n)]

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def generated_tokens(self) -> int:
        return sum(answer.tokens for answer in self.answers)

    def note(self, index: int, tokens: int, finish_reason: FinishReason | None, discarded_tokens: int = 0) -> None:
        """So many tokens of answer `index` have come, and it may have ended; so many more were drawn for answers that
        nobody gets."""
        now, meter, answer = time.monotonic(), self.meter, self.answers[index]
        meter.discarded_tokens += discarded_tokens
        if tokens:
            if answer.last_s:
                meter.token_gap_s.observe(now - answer.last_s)
            else:
                answer.first_s = now
                meter.first_token_s.observe(now - self.since_s)
            answer.last_s = now
            answer.tokens += tokens
            meter.generated_tokens += tokens
        if finish_reason is not None:
            self._end(answer, finish_reason, now)

    def note_start(self, cached_tokens: int, queue_s: float) -> None:
        """The first news of a sample; only that of the request's first one counts. `queue_s`: it waited in the
        engine."""
        if self.first_token_s is not None:
            return
        now, meter = time.monotonic(), self.meter
        self.first_token_s, self.cached_tokens = now - self.since_s, cached_tokens
        meter.prompt_tokens += self.prompt_tokens
        meter.cached_tokens += cached_tokens
        meter.prompt_lengths.observe(self.prompt_tokens)
        meter.queue_s.observe(queue_s)
        meter.prefill_s.observe(max(0.0, now - self.handed_s - queue_s))

    def __enter__(self) -> RequestWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, trace
        is_departure = error is None or isinstance(error, GeneratorExit | asyncio.CancelledError)
        if isinstance(error, PunaError) and not isinstance(error, EngineError) and self.first_token_s is None:
            self.meter.refused += 1
            return
        now = time.monotonic()
        for answer in self.answers:
            if answer.finish_reason is None:
                self._end(answer, "abort" if is_departure else "error", now)

    def _end(self, answer: _Answer, reason: FinishReason, now: float) -> None:
        answer.finish_reason, meter = reason, self.meter
        meter.finished[reason] += 1
        if reason in ("abort", "error"):  # how long these took says nothing of the server
            return
        meter.whole_s.observe(now - self.since_s)
        meter.decode_s.observe(answer.last_s - answer.first_s)
        meter.answer_lengths.observe(answer.tokens)
        if answer.tokens > 1:
            meter.token_mean_s.observe((answer.last_s - answer.first_s) / (answer.tokens - 1))
