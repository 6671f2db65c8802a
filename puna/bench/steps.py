"""Steps made by hand, to time a backend without an engine around it.

Every sequence has the same lengths. Blocks are handed out one after the other, as a fresh pool would. Knows the
contract of a step (puna/kernels/batch.py) and no model.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from puna.kernels.batch import F32, I32, Interpreter, SampleRows, StepBatch

NO_MOVES = np.empty((0, 3), np.int32)


@dataclass(frozen=True)
class StepShape:
    """`sequences` sequences that compute `new_len` tokens each, behind `cached_len` that are there already; the last
    token of each is sampled where `sampled`, with `temperature` and `top_p`."""

    sequences: int
    new_len: int
    cached_len: int
    sampled: bool = True
    temperature: float = 0.0
    top_p: float = 1.0

    @property
    def tokens(self) -> int:
        return self.sequences * self.new_len

    @property
    def seen_keys(self) -> int:
        """Keys that all tokens of the step together look at, without windows."""
        return self.sequences * sum(range(self.cached_len + 1, self.cached_len + self.new_len + 1))

    def blocks(self, block_size: int) -> int:
        """Blocks of all sequences, without the null block."""
        return self.sequences * -(-(self.cached_len + self.new_len) // block_size)


def make_step(shape: StepShape, block_size: int, vocab_size: int, seed: int = 1) -> StepBatch:
    each = shape.blocks(block_size) // shape.sequences
    tables = np.arange(1, 1 + each * shape.sequences, dtype=np.int32).reshape(shape.sequences, each)
    positions = np.arange(shape.cached_len, shape.cached_len + shape.new_len, dtype=np.int32)
    last = np.arange(1, shape.sequences + 1, dtype=np.int32) * shape.new_len - 1
    ids = np.random.default_rng(seed).integers(0, vocab_size, shape.tokens)
    return StepBatch(
        token_ids=ids.astype(np.int32),
        positions=np.tile(positions, shape.sequences),
        query_start=np.arange(shape.sequences + 1, dtype=np.int32) * np.int32(shape.new_len),
        tables=tables,
        moves=NO_MOVES,
        samples=_rows(last if shape.sampled else last[:0], shape),
    )


def step_seconds(interpreter: Interpreter, batch: StepBatch, repeats: int, budget_s: float) -> list[float]:
    """`repeats` times the same step after one that warms up, or as many (3 at least) as `budget_s` seconds hold."""
    interpreter.step(batch)
    found: list[float] = []
    begun = time.perf_counter()
    while len(found) < 3 or (len(found) < repeats and time.perf_counter() - begun < budget_s):
        started = time.perf_counter()
        interpreter.step(batch)
        found.append(time.perf_counter() - started)
    return found


def _rows(index: I32, shape: StepShape) -> SampleRows:
    count = len(index)

    def ints(value: int) -> I32:
        return np.full(count, value, np.int32)

    def reals(value: float) -> F32:
        return np.full(count, value, np.float32)

    none, starts = np.empty(0, np.int32), np.zeros(count + 1, np.int32)
    return SampleRows(
        index=index,
        target=ints(-1),
        num_logprobs=ints(-1),
        temperature=reals(shape.temperature),
        top_k=ints(0),
        top_p=reals(shape.top_p),
        min_p=reals(0.0),
        repetition=reals(1.0),
        frequency=reals(0.0),
        presence=reals(0.0),
        seed=np.arange(count, dtype=np.uint64),
        position=ints(shape.cached_len + shape.new_len),
        history=np.zeros((1, 1), np.int32),
        history_row=ints(0),
        prompt_len=ints(0),
        total_len=ints(0),
        allowed_start=starts,
        allowed_ids=none,
        banned_start=starts,
        banned_ids=none,
        bias_start=starts,
        bias_ids=none,
        bias_values=np.empty(0, np.float32),
    )
