"""When requests come: gaps drawn from a distribution. Knows rates and seeds; what comes is no business of it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import accumulate, islice

from puna.errors import InputError


def arrival_times(rate: float, count: int, dice: random.Random, variation: float = 1.0) -> list[float]:
    """`count` moments in seconds, the first after the first gap: `rate` a second on average.

    `variation`: standard deviation of the gaps over their mean. 1 is a Poisson process, 0 a steady beat, more comes in
    bursts (gamma distributed gaps). InputError where there is no such process.
    """
    if not 0 < rate < math.inf:
        raise InputError(f"a rate of {rate} requests a second; it is above 0", param="rate")
    if not 0 <= variation < math.inf:
        raise InputError(f"a variation of {variation} of the gaps; it is 0 or more", param="variation")
    return list(accumulate(islice(_gaps(rate, variation, dice), count)))


def _gaps(rate: float, variation: float, dice: random.Random) -> Iterator[float]:
    shape = variation**-2 if variation else 0.0
    while True:
        if variation == 1.0:
            yield dice.expovariate(rate)
        else:
            yield dice.gammavariate(shape, 1.0 / (rate * shape)) if variation else 1.0 / rate
