"""Several measurements of one thing: their median and how far they lie apart.

Knows numbers only. A benchmark reports a `Spread`, never a single value, so that whoever reads it sees the noise.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

import msgspec


class Spread(msgspec.Struct, frozen=True):
    """`values` in the order measured, one a repetition; `median`, `low` and `high` of them."""

    median: float
    low: float
    high: float
    values: list[float]

    @property
    def share(self) -> float:
        """How far the values lie apart, as a share of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


def spread(values: Iterable[float]) -> Spread:
    """At least one value."""
    measured = list(values)
    return Spread(statistics.median(measured), min(measured), max(measured), measured)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values (0 to 1) do not exceed; NaN of none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
