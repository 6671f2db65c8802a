"""Counters of an engine, as plain values that travel with every step's message."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import zip_longest

import msgspec

from puna.engine.histogram import STEP_TOKENS, Histogram
from puna.sched.stats import SchedulerStats


@dataclass(slots=True)
class EngineCounters:
    """What an engine counts while it runs. Seconds are per phase, summed over all steps."""

    steps: int = 0
    computed_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0
    requests: int = 0
    finished: dict[str, int] = field(default_factory=lambda: {"stop": 0, "length": 0, "abort": 0, "error": 0})
    schedule_s: float = 0.0
    prepare_s: float = 0.0
    forward_s: float = 0.0
    sample_s: float = 0.0
    deliver_s: float = 0.0
    transport_s: float = 0.0  # writing and sending messages, where the engine has a process of its own
    step_tokens: Histogram = field(default_factory=lambda: Histogram(STEP_TOKENS))

    def as_dict(self) -> dict[str, int | float]:
        """Flat, as `finished_stop`, `forward_s` and so on."""
        flat: dict[str, int | float] = {f"finished_{reason}": count for reason, count in self.finished.items()}
        for name in self.__dataclass_fields__:
            if name not in ("finished", "step_tokens"):
                flat[name] = getattr(self, name)
        return flat


class EngineStats(msgspec.Struct, frozen=True):
    """The scheduler's gauges and the engine's counters at one moment. `step_tokens`: steps by their size in tokens."""

    scheduler: SchedulerStats
    counters: dict[str, int | float]
    live_requests: int
    step_tokens: list[int] = []


COUNTED = ("prefix_queries", "prefix_hits", "evictions", "preemptions")  # of the scheduler's figures: sums, not gauges


def totals(before: EngineStats | None, now: EngineStats | None) -> EngineStats | None:
    """The gauges of `now` with the sums of both: of an engine and of those that it replaced."""
    if before is None or now is None:
        return now or before
    old, new = before.scheduler, now.scheduler
    return EngineStats(
        replace(new, **{name: getattr(old, name) + getattr(new, name) for name in COUNTED}),
        {name: before.counters.get(name, 0) + count for name, count in now.counters.items()},
        now.live_requests,
        [a + b for a, b in zip_longest(before.step_tokens, now.step_tokens, fillvalue=0)],
    )
