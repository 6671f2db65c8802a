"""How near the product with each type of weights comes to its bound, and to what Q4_1 reaches of its own.

A type is timed in a program of some matrices of random codes, together larger than the caches of a core; types take
turns, so that a slow moment of the machine meets all of them. The input is brought in by an embedding, whose cost is
measured apart and taken off. Knows blocks of the file's types and no model; how panels lie is the core's business.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from puna.bench.limits import MachineLimits
from puna.bench.steps import StepShape, make_step, step_seconds
from puna.kernels.batch import KVConfig
from puna.kernels.cpu import NativeInterpreter
from puna.kernels.program import Embed, Linear, Op, Program
from puna.kernels.tensor import BLOCK_SIZES, RawTensor
from puna.workloads.spread import Spread, spread

BESIDE = "Q4_1"  # the type that others are compared with
# Types with panels of their own and where, in a block, the float16 factors lie.
FACTORS_AT = {
    BESIDE: (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_0": (0,),
    "Q4_K": (0, 2),
    "Q4_Z": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "Q8_0": (0,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}
MOST_ROWS = 4096
IN, OUT, MATRICES = 1024, 4096, 4
VOCAB = 256  # different rows that an input is made of
ROUNDS = 5
TURN_S = 0.04  # for one type, number of rows and round
BLOCK_SIZE = 16


class LayoutFigure(msgspec.Struct, frozen=True, kw_only=True):
    """One type of weights with so many rows. `bits`: of a weight in the file; `packed_bits`: as the core keeps it.
    `share` of the bound ("memory", or the kind of operation) that is reached; `beside`: that share over Q4_1's."""

    type: str
    bits: float
    packed_bits: float
    rows: int
    seconds: Spread
    moved_bytes_per_s: float
    operations_per_s: float
    bound: str
    share: float
    beside: float


def measure_layouts(
    types: Sequence[str], row_counts: Sequence[int], limits: MachineLimits, tick: Callable[[], None] = lambda: None
) -> list[LayoutFigure]:
    """Of `types` (names in FACTORS_AT) and Q4_1, each with so many rows, on the path and threads that `limits` are of.
    `tick` is called after each of `layout_steps(types, row_counts)` parts."""
    alone = _interpreter(None, max(row_counts), limits)
    cores: dict[str, NativeInterpreter] = {}
    for type in _with_reference(types):
        cores[type] = _interpreter(type, max(row_counts), limits)
        tick()
    batches = {rows: make_step(_shape(rows), BLOCK_SIZE, VOCAB) for rows in row_counts}
    feeding: dict[int, list[float]] = {rows: [] for rows in row_counts}
    seconds: dict[tuple[str, int], list[float]] = {(type, rows): [] for type in cores for rows in row_counts}
    for _ in range(ROUNDS):
        for rows, batch in batches.items():
            feeding[rows] += step_seconds(alone, batch, 100, TURN_S / 4)
            for type, core in cores.items():
                seconds[type, rows] += step_seconds(core, batch, 100, TURN_S)
            tick()
    figures: list[LayoutFigure] = []
    for rows in row_counts:
        off = statistics.median(feeding[rows])
        reference = 0.0
        for type, core in cores.items():
            packed = core.packed_bytes - alone.packed_bytes
            figure = _figure(type, rows, [each - off for each in seconds[type, rows]], packed, limits, reference)
            reference = reference or figure.share
            figures.append(figure)
    return figures


def layout_steps(types: Sequence[str], row_counts: Sequence[int]) -> int:
    """How often `measure_layouts` ticks."""
    return len(_with_reference(types)) + ROUNDS * len(row_counts)


def _with_reference(types: Sequence[str]) -> list[str]:
    return list(dict.fromkeys((BESIDE, *types)))


def _figure(
    type: str, rows: int, seconds: list[float], packed: int, limits: MachineLimits, reference: float
) -> LayoutFigure:
    operand = "bf16_tiles" if limits.path == "amx" else "int8"
    moved = packed + rows * (IN * (2 if limits.path == "amx" else 1) + MATRICES * OUT * 4)
    operations = 2.0 * rows * IN * MATRICES * OUT
    least, bound = limits.least_seconds(moved, operations, operand, moved)
    median = statistics.median(seconds)
    block, size = BLOCK_SIZES[type]
    return LayoutFigure(
        type=type,
        bits=8 * size / block,
        packed_bits=8 * packed / (IN * MATRICES * OUT),
        rows=rows,
        seconds=spread(seconds),
        moved_bytes_per_s=moved / median,
        operations_per_s=operations / median,
        bound=bound,
        share=least / median,
        beside=least / median / reference if reference else 1.0,
    )


def _interpreter(type: str | None, most_rows: int, limits: MachineLimits) -> NativeInterpreter:
    """A program that brings rows in and multiplies them with all matrices, none where there is no type."""
    dice = np.random.default_rng(1)
    table = dice.standard_normal((VOCAB, IN), np.float32)
    stub = np.zeros((VOCAB, IN), np.float32)
    weights = {name: _floats(name, values) for name, values in (("table", table), ("stub", stub))}
    buffers = {"hidden": IN, "logits": VOCAB}
    products: list[Op] = []
    if type is not None:
        data = _random_blocks(type, OUT * IN)
        for number in range(MATRICES):
            weight, out = f"weight {number}", f"out {number}"
            weights[weight] = RawTensor(weight, type, (OUT, IN), data)
            buffers[out] = OUT
            products.append(Linear("hidden", out, weight))
    program = Program(buffers, (Embed("hidden", "table"), *products), (Linear("hidden", "logits", "stub"),), (), VOCAB)
    pool = KVConfig(1 + max(most_rows, VOCAB), BLOCK_SIZE)  # a block a row, at the most
    return NativeInterpreter(program, weights, pool, threads=limits.threads, isa=limits.path)


def _shape(rows: int) -> StepShape:
    """As decoding brings rows, or a prompt; nothing is sampled."""
    return StepShape(rows, 1, 0, sampled=False) if rows <= 64 else StepShape(1, rows, 0, sampled=False)


def _random_blocks(type: str, values: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Any codes, under factors that are small numbers."""
    block, size = BLOCK_SIZES[type]
    dice = np.random.default_rng(2)
    blocks = dice.integers(0, 256, (values // block, size), np.uint8)
    for at in FACTORS_AT[type]:
        blocks[:, at : at + 2] = dice.uniform(0.001, 0.01, (len(blocks), 1)).astype("<f2").view(np.uint8)
    return blocks.reshape(-1)


def _floats(name: str, values: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> RawTensor:
    return RawTensor(name, "F32", values.shape, values.view(np.uint8).reshape(-1))
