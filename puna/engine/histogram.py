"""Counts of values by size: one bisection and three additions a value, so that every token can afford one.

Knows numbers and bounds. A value that equals a bound counts below it, as Prometheus' `le` says.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

# Upper bounds: times in seconds, lengths in tokens. Where vLLM has the histogram, they are those of its dashboards.
FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0
)  # fmt: skip
TOKEN_GAP_S = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
    0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0
)  # fmt: skip
REQUEST_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0
)  # fmt: skip
STEP_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


def lengths_up_to(limit: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20 ... as far as `limit`."""
    bounds = (mantissa * 10**power for power in range(len(str(limit))) for mantissa in (1, 2, 5))
    return tuple(bound for bound in bounds if bound <= limit)


class Histogram:
    """`counts[i]` values are at most `bounds[i]` and more than the bound before it; the last count is of all above."""

    __slots__ = ("bounds", "count", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.count = 0
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.count += 1
        self.total += value
