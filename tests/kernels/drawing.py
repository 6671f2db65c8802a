"""Rows of logits that a test writes down, sampled by the native core and by its NumPy twin.

Logits come out of an identity matrix, so what is compared is the sampler alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from puna.kernels.batch import KVConfig, SampleRows, StepBatch, StepOutput
from puna.kernels.cpu import NativeInterpreter
from puna.kernels.reference.interpreter import ReferenceInterpreter
from tests.kernels.steps import F32, Case, around, rows, step

KV = KVConfig(num_blocks=200, block_size=16)


def case_of(logits: F32) -> Case:
    return around([], {"x": np.asarray(logits, np.float32)}, {}, out="x")


def native(logits: F32, samples: SampleRows, isa: str = "auto", threads: int = 2) -> StepOutput:
    """Samples rows of given logits."""
    case = case_of(logits)
    core = NativeInterpreter(case.program, case.weights, KV, isa=isa, threads=threads)
    return core.step(step_of(case, samples))


def sample(logits: F32, samples: SampleRows, isa: str = "auto", threads: int = 2) -> StepOutput:
    """As `native`, and the twin gives the same."""
    out = native(logits, samples, isa, threads)
    case = case_of(logits)
    twin = ReferenceInterpreter(case.program, case.weights, KV).step(step_of(case, samples))
    np.testing.assert_array_equal(out.tokens, twin.tokens)
    np.testing.assert_array_equal(out.rank, twin.rank)
    np.testing.assert_array_equal(out.top_ids, twin.top_ids)
    return out


def step_of(case: Case, samples: SampleRows) -> StepBatch:
    return step([(range(case.tokens), 0, range(1, 1 + -(-case.tokens // 16)))], samples)


def draws(logits: F32, count: int, **given: Any) -> list[int]:
    """`count` draws from one row of logits, at positions 0, 1, 2 ..."""
    positions = np.arange(count, dtype=np.int32)
    given = {"temperature": 1.0, "seed": 1234} | given
    for name in ("allowed", "banned", "bias"):
        if name in given:
            given[name] = [given[name]] * count
    samples = rows([0] * count, position=positions, **given)
    run = sample if count <= 1000 else native  # the twin draws a thousand a second or so
    return [int(token) for token in run(np.atleast_2d(logits), samples).tokens]


def softmax(x: npt.NDArray[Any], temperature: float = 1.0) -> npt.NDArray[np.float64]:
    weights = np.exp((x.astype(np.float64) - x.max()) / temperature)
    return weights / weights.sum()  # type: ignore[no-any-return]
