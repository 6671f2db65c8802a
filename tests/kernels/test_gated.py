"""Gate and up that are multiplied, gated and rounded in one stage have the bits of the operators one by one.

A program that reads the gate's output once more cannot be fused: it is the other side of each comparison. Formats of
the two matrices, biases, activations, odd widths and numbers of rows on both sides of every border are crossed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from puna.kernels import program as ops
from puna.kernels.batch import KVConfig
from puna.kernels.cpu import NativeInterpreter
from puna.kernels.program import Activation
from tests.kernels.steps import F32, Case, around, raw, step

KV = KVConfig(num_blocks=140, block_size=16)
WIDTH, INNER, OUT = 96, 75, 40


def normal(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def case(x: F32, types: tuple[str, str], bias: bool, kind: Activation, more: Sequence[ops.Op]) -> Case:
    """x through a gated block whose inner width is no whole number of groups, added to random rows."""
    weights = {"g": raw("g", normal(1, INNER, WIDTH), types[0]), "u": raw("u", normal(2, INNER, WIDTH), types[1])}
    weights |= {"d": raw("d", normal(3, OUT, INNER), "F16")}
    weights |= {"gb": raw("gb", normal(4, INNER)), "ub": raw("ub", normal(5, INNER))} if bias else {}
    body: list[ops.Op] = [
        ops.Linear("x", "gate", "g", "gb" if bias else None),
        ops.Linear("x", "up", "u", "ub" if bias else None),
        ops.Gate("gate", "up", "gate", kind),
        ops.Linear("gate", "y", "d", None, True),
        *more,
    ]
    tables = {"x": x, "y": normal(6, len(x), OUT)}
    return around(body, tables, weights, widths={"gate": INNER, "up": INNER}, out="y")


def run(case: Case, isa: str) -> tuple[F32, list[str]]:
    """What a program leaves, and the names of its stages."""
    native = NativeInterpreter(case.program, case.weights, KV, isa=isa, threads=2)
    native.profile(True)
    logits = native.step(step([(range(case.tokens), 0, range(1, 2 + case.tokens // 16))])).logits
    assert logits is not None
    return logits[:, :OUT], [time.name for time in native.profile_times()]


@pytest.mark.parametrize(
    ("types", "kind", "bias"),
    [
        (("Q4_1", "Q4_1"), "silu", False),
        (("Q4_1", "Q4_1"), "gelu", True),
        (("Q8_0", "Q4_0"), "gelu_tanh", True),
        (("F16", "Q8_0"), "relu", False),
        (("Q8_0", "F16"), "relu2", True),
    ],
)
def test_a_gate_in_one_stage_has_the_bits_of_its_operators(
    isa: str, types: tuple[str, str], kind: Activation, bias: bool
) -> None:
    for count in (1, 2, 17, 40, 64, 65, 100):
        x = normal(7, count, WIDTH)
        found, stages = run(case(x, types, bias, kind, []), isa)
        # The gate's values, read once more, and then undone.
        wanted, apart = run(case(x, types, bias, kind, [ops.Scale("gate", 1.0)]), isa)
        np.testing.assert_array_equal(found, wanted)
        assert any("gate" in name and "linear" in name for name in stages) == (isa == "amx")
        assert not any("gate" in name and "linear" in name for name in apart)


def test_a_gate_whose_factors_are_read_again_stays_a_stage_of_its_own(isa: str) -> None:
    x = normal(8, 70, WIDTH)
    weights = {"e": raw("e", normal(9, OUT, INNER), "F32")}
    for buffer in ("gate", "up"):
        again = case(x, ("Q4_1", "Q4_1"), False, "silu", [ops.Linear(buffer, "y", "e", None, True)])
        again.weights.update(weights)
        found, stages = run(again, isa)
        assert not any("gate" in name and "linear" in name for name in stages)
        plain, _ = run(case(x, ("Q4_1", "Q4_1"), False, "silu", []), isa)
        assert np.abs(found - plain).max() > 0.1


def test_rows_that_pass_stages_in_blocks_have_the_bits_of_few(isa: str) -> None:
    if isa == "portable":
        pytest.skip("too slow for this many rows")
    x = normal(10, 2100, WIDTH)
    found, _ = run(case(x, ("Q4_1", "Q4_1"), True, "silu", []), isa)
    for first, count in ((0, 60), (500, 30), (1000, 40), (2060, 40)):
        rows = case(x[first : first + count], ("Q4_1", "Q4_1"), True, "silu", [])
        y = normal(6, 2100, OUT)[first : first + count]
        rows.weights["table y"] = raw("table y", y)
        np.testing.assert_array_equal(run(rows, isa)[0], found[first : first + count])
