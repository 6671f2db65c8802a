"""Runs a workload on an engine in this process and notes when each token came.

Knows the engine's door and its steps; what the times mean is decided in figures.py.
"""

from __future__ import annotations

import itertools
import time

import msgspec

from puna.bench.workload import Workload, check_fits
from puna.engine.core import Engine
from puna.engine.params import EngineRequest
from puna.errors import EngineError


class Run(msgspec.Struct, frozen=True):
    """One repetition. `arrivals_s`: for each sequence the seconds after the start at which tokens of it came, in order,
    one entry at least (a server may send several tokens at one time); `counts`: tokens of each answer."""

    arrivals_s: list[list[float]]
    counts: list[int]
    cached_tokens: int = 0

    @property
    def wall_s(self) -> float:
        return max(times[-1] for times in self.arrivals_s)

    @property
    def first_s(self) -> list[float]:
        return [times[0] for times in self.arrivals_s]

    @property
    def gaps_s(self) -> list[float]:
        """Between the arrivals of each sequence, all sequences together."""
        return [later - sooner for times in self.arrivals_s for sooner, later in itertools.pairwise(times)]


def run_offline(engine: Engine, workload: Workload, repetition: int) -> Run:
    """All sequences are handed over at once. Raises InputError where they do not fit, EngineError where one fails."""
    check_fits(workload, engine.max_model_len)
    prompts = workload.prompts(repetition, engine.backend.model.program.vocab_size)
    arrivals: dict[str, list[float]] = {f"{repetition}/{row}": [] for row in range(len(prompts))}
    cached = engine.counters.cached_tokens
    started = time.perf_counter()
    try:
        for row, (request_id, prompt) in enumerate(zip(arrivals, prompts, strict=True)):
            engine.add(EngineRequest(request_id=request_id, prompt_token_ids=prompt, params=workload.params(row)))
        while engine.has_work:
            updates = engine.step()
            now = time.perf_counter() - started
            for update in updates:
                if update.finish_reason == "error":
                    raise EngineError(update.error or "the engine could not compute a sequence")
                arrivals[update.request_id] += [now] * len(update.token_ids)
    finally:
        for request_id in arrivals:
            engine.abort(request_id)
    times = list(arrivals.values())
    return Run(times, [len(each) for each in times], engine.counters.cached_tokens - cached)
