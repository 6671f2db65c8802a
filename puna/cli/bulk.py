"""Runs many prompts together in one engine and writes their records in the order of the input, as soon as they can be.

A window bounds how far the input is read ahead of the oldest prompt that still runs, so a file of any length will do.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, TypeAlias

import msgspec

from puna.cli.interrupt import Interrupt
from puna.cli.records import BadLine, Line, Record, Sample
from puna.errors import PunaError

if TYPE_CHECKING:
    from puna.cli.local import LocalDelta, LocalModel

Source: TypeAlias = Iterator[Line | BadLine]

WINDOW = 512
PROGRESS_EVERY_S = 0.5


@dataclass
class Summary:
    done: int = 0
    failed: int = 0
    truncated: int = 0  # prompts
    tokens: int = 0
    seconds: float = 0.0
    interrupted: bool = False

    def __str__(self) -> str:
        speed = self.tokens / self.seconds if self.seconds else 0.0
        failed = f", {self.failed} failed" if self.failed else ""
        failed += f", {self.truncated} with a prompt that was cut" if self.truncated else ""
        cut = ", interrupted" if self.interrupted else ""
        cost = f"{self.tokens} tokens in {self.seconds:.1f} s ({speed:.1f} tokens/s)"
        return f"{self.done} prompts done{failed}{cut}; {cost}"


@dataclass
class _Sample:
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    seed: int | None = None
    score: float | None = None


@dataclass
class _Job:
    line: Line | BadLine
    samples: list[_Sample] = field(default_factory=list)
    cached_tokens: int = 0
    error: str | None = None

    @property
    def done(self) -> bool:
        return self.error is not None or all(s.finish_reason for s in self.samples)

    def record(self) -> Record:
        if isinstance(self.line, BadLine) or self.error is not None:
            return Record(id=self.line.id, line=self.line.number, error=self.error)
        outputs = [
            Sample(i, "".join(s.text), s.token_ids, s.finish_reason, s.seed, s.score)
            for i, s in enumerate(self.samples)
        ]
        return Record(
            id=self.line.id,
            line=self.line.number,
            prompt=self.line.text,
            outputs=outputs,
            prompt_tokens=len(self.line.prompt.token_ids),
            truncated_tokens=self.line.prompt.truncated_tokens,
            cached_tokens=self.cached_tokens,
        )


def run_all(local: LocalModel, lines: Source, target: IO[bytes]) -> Summary:
    """Runs every line. Ctrl-C ends it after the step; what was written by then is whole."""
    summary, begun, shown = Summary(), time.perf_counter(), 0.0
    waiting: deque[_Job] = deque()
    running: dict[str, _Job] = {}
    exhausted = False
    with Interrupt() as interrupt:
        while not interrupt.asked:
            while not exhausted and len(waiting) < WINDOW:
                line = next(lines, None)
                if line is None:
                    exhausted = True
                else:
                    waiting.append(_begin(local, line, running))
            while waiting and waiting[0].done:
                _write(waiting.popleft(), target, summary)
            if exhausted and not waiting:
                break
            for delta in local.step() if running else ():
                _advance(local, delta, running, summary)
            summary.seconds = time.perf_counter() - begun
            if sys.stderr.isatty() and summary.seconds - shown > PROGRESS_EVERY_S:
                shown = summary.seconds
                print(f"\r\x1b[K{summary}", end="", file=sys.stderr, flush=True)
        summary.interrupted = interrupt.asked
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr)
    target.flush()
    summary.seconds = time.perf_counter() - begun
    return summary


def _begin(local: LocalModel, line: Line | BadLine, running: dict[str, _Job]) -> _Job:
    if isinstance(line, BadLine):
        return _Job(line, error=line.error)
    job = _Job(line, [_Sample() for _ in range(line.params.n)])
    try:
        running[local.add(line.prompt.token_ids, line.params)] = job
    except PunaError as error:
        job.error = f"line {line.number}: {error}"
    return job


def _advance(local: LocalModel, delta: LocalDelta, running: dict[str, _Job], summary: Summary) -> None:
    job = running.get(delta.request_id)
    if job is None:
        return
    sample = job.samples[delta.index]
    sample.text.append(delta.text)
    sample.token_ids += delta.token_ids
    summary.tokens += len(delta.token_ids)
    job.cached_tokens = max(job.cached_tokens, delta.cached_tokens or 0)
    sample.finish_reason = delta.finish_reason or ""
    sample.seed = sample.seed if delta.seed is None else delta.seed
    sample.score = delta.score
    if delta.error is not None:
        job.error = f"line {job.line.number}: {delta.error}"
    if job.done:
        del running[delta.request_id]
        local.forget(delta.request_id)


def _write(job: _Job, target: IO[bytes], summary: Summary) -> None:
    summary.done += 1
    record = job.record()
    summary.failed += record.error is not None
    summary.truncated += record.truncated_tokens > 0
    target.write(msgspec.json.encode(record) + b"\n")
    target.flush()
