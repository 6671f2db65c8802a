"""The machine's limits, measured by loops of nothing else (csrc/limits.hpp), and the bound that applies to a kernel.

A kernel that reads `bytes` and does `operations` cannot be quicker than either takes at the machine's best: that is its
bound, and the share of it that it reaches is the figure to look at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import msgspec

from puna.errors import MemoryBudgetError
from puna.kernels.cpu import _native

KIB, MIB = 1 << 10, 1 << 20
READ_BYTES = (64 * KIB, 512 * KIB, 2 * MIB, 8 * MIB, 32 * MIB, 128 * MIB, 512 * MIB)
KINDS = ("int8", "bf16", "f32", "int8_tiles", "bf16_tiles")
REPEATS = 5
SECONDS = 0.03  # a loop


class Bandwidth(msgspec.Struct, frozen=True):
    """Bytes a second that all threads together read, from a working set of `working_bytes` in all."""

    working_bytes: int
    bytes_per_s: float


class MachineLimits(msgspec.Struct, frozen=True):
    """`operations_per_s`: of the instruction path, by kind of operand; a multiply-add counts as two, and a kind that
    the path or the processor lacks is left out. Each is the best of some repetitions, for noise only lowers them."""

    path: str
    threads: int
    read: list[Bandwidth]
    operations_per_s: dict[str, float]
    barrier_s: float
    dispatch_s: float

    def read_bytes_per_s(self, working_bytes: float) -> float:
        """For a working set of that size: between two measured sizes along a straight line over the logarithm."""
        points = self.read
        if working_bytes <= points[0].working_bytes:
            return points[0].bytes_per_s
        for below, above in itertools.pairwise(points):
            if working_bytes <= above.working_bytes:
                span = math.log(above.working_bytes / below.working_bytes)
                share = math.log(working_bytes / below.working_bytes) / span
                return below.bytes_per_s + share * (above.bytes_per_s - below.bytes_per_s)
        return points[-1].bytes_per_s

    def least_seconds(self, bytes_read: float, operations: float, kind: str, working_bytes: float) -> tuple[float, str]:
        """The bound, and which it is: "memory" or the kind of operation. `working_bytes`: all that is read before the
        same bytes are read again, which decides the cache that they come from."""
        reading = bytes_read / self.read_bytes_per_s(working_bytes)
        rate = self.operations_per_s.get(kind, 0.0)
        computing = operations / rate if rate else 0.0
        return (reading, "memory") if reading >= computing else (computing, kind)


def measure_limits(path: str, threads: int, tick: Callable[[], None] = lambda: None) -> MachineLimits:
    """Takes about two seconds and half a gibibyte. `tick` is called after each of `limit_steps()` parts."""

    def best(measure: Callable[[], float], choose: Callable[[list[float]], float] = max) -> float:
        found = choose([measure() for _ in range(REPEATS)])
        tick()
        return found

    def reading(size: int) -> float:
        return _native.read_bytes_per_second(path, threads, size, SECONDS)

    def multiplying(kind: str) -> float:
        return _native.operations_per_second(path, threads, kind, SECONDS)

    try:
        read = [Bandwidth(size, best(partial(reading, size))) for size in READ_BYTES]
    except MemoryError:
        raise MemoryBudgetError(
            f"measuring this machine's limits reads {max(READ_BYTES) >> 20} MiB at once, which this process may not "
            "have; give it more memory (ulimit -v, the container's limit)"
        ) from None
    rates = {kind: best(partial(multiplying, kind)) for kind in KINDS}
    return MachineLimits(
        path=path,
        threads=threads,
        read=read,
        operations_per_s={kind: rate for kind, rate in rates.items() if rate},
        barrier_s=best(lambda: _native.barrier_seconds(threads, SECONDS), min),
        dispatch_s=best(lambda: _native.dispatch_seconds(threads, SECONDS), min),
    )


def limit_steps() -> int:
    """How often `measure_limits` ticks."""
    return len(READ_BYTES) + len(KINDS) + 2
