"""A simulation in figures: how long requests waited, how much came out. Knows outcomes; no scheduler, no table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

from puna.plan.simulated import Outcome
from puna.workloads.spread import percentile


class Times(msgspec.Struct, frozen=True):
    """Seconds over requests."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Times:
        """Of one value at least."""
        return cls(statistics.fmean(values), *(percentile(values, share) for share in (0.5, 0.9, 0.99)))


class SimulationFigures(msgspec.Struct, frozen=True, kw_only=True):
    """`output_tokens` counts every sample. Times are over the served, None where nobody was.

    wait_s        to the first token
    token_s       mean time between the tokens of an answer, where it has several
    whole_s       to the last token
    normalised_s  whole_s over the tokens of one answer
    """

    served: int
    refused: int
    preemptions: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    seconds: float
    wait_s: Times | None
    token_s: Times | None
    whole_s: Times | None
    normalised_s: Times | None

    @property
    def output_tokens_per_s(self) -> float:
        return self.output_tokens / self.seconds if self.seconds else 0.0


def figures_of(outcomes: Sequence[Outcome], seconds: float) -> SimulationFigures:
    """`seconds`: of the whole run."""
    served = [outcome for outcome in outcomes if outcome.done_s is not None]
    several = [outcome for outcome in served if outcome.request.output_len > 1]
    between = [(one.whole_s - one.wait_s) / (one.request.output_len - 1) for one in several]
    return SimulationFigures(
        served=len(served),
        refused=len(outcomes) - len(served),
        preemptions=sum(outcome.preemptions for outcome in outcomes),
        prompt_tokens=sum(outcome.request.prompt_len for outcome in served),
        cached_tokens=sum(outcome.cached_len for outcome in served),
        output_tokens=sum(outcome.request.output_len * outcome.request.samples for outcome in served),
        seconds=seconds,
        wait_s=Times.of([outcome.wait_s for outcome in served]) if served else None,
        token_s=Times.of(between) if between else None,
        whole_s=Times.of([outcome.whole_s for outcome in served]) if served else None,
        normalised_s=Times.of([outcome.normalised_s for outcome in served]) if served else None,
    )
