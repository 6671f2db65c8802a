"""The step times of this machine with a model, measured for the simulator: a few steps made by hand, and a fit.

Single tokens of many sequences and whole prompts are timed without history and with one; what a key costs is the
difference. Knows an interpreter and the model of time (puna/plan/step_time.py); no engine, no scheduler.
"""

from __future__ import annotations

import statistics

import numpy as np

from puna.bench.steps import StepShape, make_step, step_seconds
from puna.errors import InputError
from puna.kernels.batch import MOVE_COPY, Interpreter, StepBatch
from puna.plan.step_time import StepTime

SINGLES = (1, 2, 4, 8, 16, 32, 64)  # rows of one token
PROMPTS = (16, 64, 128, 256, 512)  # tokens of one prompt
SHORT, LONG = 16, 768  # keys before a row
COPIES = 32
REPEATS, BUDGET_S = 7, 0.6  # a shape


def measure_step_time(interpreter: Interpreter, name: str) -> StepTime:
    """Takes some seconds. Needs a pool of 64 sequences of 64 tokens, and one of LONG + 256; InputError where it is
    smaller."""
    kv = interpreter.kv
    shapes = [StepShape(count, 1, SHORT) for count in SINGLES]
    needed = max(shape.blocks(kv.block_size) for shape in (*shapes, StepShape(8, 1, LONG), StepShape(1, 512, LONG)))
    if needed + 1 > kv.num_blocks or kv.num_blocks < COPIES * 2 + 1:
        raise InputError(f"the steps need {needed + 1} blocks, the pool has {kv.num_blocks}; give it more (kv_gib)")
    singles = {shape.sequences: _seconds(interpreter, shape) for shape in shapes}
    prompts = {count: _seconds(interpreter, StepShape(1, count, 0)) for count in PROMPTS}
    behind = _seconds(interpreter, StepShape(8, 1, LONG))
    key_s = max(0.0, behind - singles[8]) / (8 * (LONG - SHORT))
    prompt_behind = _seconds(interpreter, StepShape(1, 256, LONG))
    prompt_key_s = max(0.0, prompt_behind - prompts[256]) / (256 * LONG)
    copied = _seconds(interpreter, StepShape(1, 1, SHORT), copies=COPIES)
    # Prompts without their keys. A row more a token than a prompt of as many tokens has: drawing, looking up its cache.
    points = {count: seconds - prompt_key_s * count * (count + 1) / 2 for count, seconds in prompts.items()}
    rows = [(singles[n] - key_s * n * (SHORT + 1) - points[n]) / n for n in (16, 64)]
    row_s = max(0.0, statistics.fmean(rows))
    points |= {n: singles[n] - n * (row_s + key_s * (SHORT + 1)) for n in SINGLES if n not in points}
    floor = min(singles.values()) / 4  # a difference of noisy numbers is no time
    return StepTime(
        name=name,
        points=tuple((count, max(floor, seconds)) for count, seconds in sorted(points.items())),
        row_s=row_s,
        key_s=key_s,
        prompt_key_s=prompt_key_s,
        copy_s=max(0.0, copied - singles[1]) / COPIES,
        swap_s=max(0.0, copied - singles[1]) / COPIES,
    )


def _seconds(interpreter: Interpreter, shape: StepShape, copies: int = 0) -> float:
    batch = make_step(shape, interpreter.kv.block_size, interpreter.program.vocab_size)
    if copies:
        moves = np.array([(MOVE_COPY, 1 + i, 1 + copies + i) for i in range(copies)], np.int32)
        batch = StepBatch(batch.token_ids, batch.positions, batch.query_start, batch.tables, moves, batch.samples)
    return min(step_seconds(interpreter, batch, REPEATS, BUDGET_S))  # the quickest: neighbours only ever slow one
