"""Matrices of two bytes a weight stay so, and their products are to the bit those of the same numbers in float32.

Widening f16 and bf16 is exact and sums go in the same order, so only memory tells the layouts apart. On the path with
tiles the default rounds both factors of BF16 matrices to bf16 instead (tests/kernels/test_operators.py), and multiplies
F16 matrices as they are by inputs of sixteen bits.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.kernels import program as ops
from puna.kernels.batch import KVConfig
from puna.kernels.cpu import NativeInterpreter, paths
from puna.kernels.reference.dequantize import dequantize
from puna.kernels.tensor import RawTensor
from tests.kernels.steps import F32, around, difference, raw, step
from tests.kernels.test_operators import TOLERANCE, many, normal, outputs, seeds, tokens, widths

HALVES = ("F16", "BF16")


def interpreter(weight: RawTensor, x: F32, isa: str, compute: str) -> NativeInterpreter:
    case = around([ops.Linear("x", "y", "w")], {"x": x}, {"w": weight}, widths={"y": weight.shape[0]}, out="y")
    return NativeInterpreter(case.program, case.weights, KVConfig(40, 16), isa=isa, threads=2, compute=compute)


def product(weight: RawTensor, x: F32, isa: str, compute: str) -> F32:
    native = interpreter(weight, x, isa, compute)
    logits = native.step(step([(range(len(x)), 0, range(1, 2 + len(x) // 16))])).logits
    assert logits is not None
    return logits[:, : weight.shape[0]]


def any_halves(kind: str, n: int, k: int, seed: int) -> RawTensor:
    """Every pattern of two bytes that is a finite number, subnormal ones and both zeros among them."""
    words = np.random.default_rng(seed).integers(0, 1 << 16, n * k).astype("<u2")
    exponent = np.uint16(0x7C00 if kind == "F16" else 0x7F80)
    words[(words & exponent) == exponent] &= ~exponent  # infinities and NaNs become subnormal
    return RawTensor("w", kind, (n, k), words.view(np.uint8))


def computes(isa: str) -> tuple[str, ...]:
    return ("float32",) if isa == "amx" else ("float32", "int8")


@pytest.mark.parametrize("kind", HALVES)
@many
@given(seed=seeds, count=tokens, k=widths, n=widths)
def test_a_product_of_halves_is_that_of_the_same_numbers_in_float32(
    isa: str, kind: str, seed: int, count: int, k: int, n: int
) -> None:
    weight = raw("w", normal(seed, n, k), kind)
    x = normal(seed + 1, count, k)
    for compute in computes(isa):
        wanted = product(raw("w", dequantize(weight)), x, isa, compute)
        np.testing.assert_array_equal(product(weight, x, isa, compute), wanted)


@pytest.mark.parametrize("kind", HALVES)
def test_every_half_comes_back_exactly(isa: str, kind: str) -> None:
    """Subnormal f16 are normal in float32; subnormal bf16 are not, and are kept all the same, but on tiles."""
    weight = any_halves(kind, 40, 96, seed=3)
    for compute in computes(isa) if kind == "BF16" else ("float32", "int8"):
        for first, last in ((0, 96), (0, 5), (90, 96)):
            found = product(weight, np.eye(96, dtype=np.float32)[first:last], isa, compute)
            np.testing.assert_array_equal(found.T, dequantize(weight)[:, first:last])


@many
@given(seed=seeds, count=st.sampled_from([1, 7, 16, 33, 65, 90]), k=st.integers(64, 700), n=widths)
def test_products_with_f16_keep_fourteen_bits_by_default(isa: str, seed: int, count: int, k: int, n: int) -> None:
    weight = raw("w", normal(seed, n, k), "F16")
    x = normal(seed + 1, count, k) * np.exp(normal(seed + 2, count, k))
    wanted = x.astype(np.float64) @ dequantize(weight).astype(np.float64).T
    assert np.abs(product(weight, x, isa, "int8") - wanted).max() <= 2.0**-14 * np.abs(wanted).max()


@pytest.mark.parametrize("first", ["Q8_0", "BF16", "F16"])
@pytest.mark.parametrize("second", ["Q8_0", "F16"])
def test_a_value_is_rounded_once_for_matrices_that_want_what_is_left_of_it_and_others(
    isa: str, first: str, second: str
) -> None:
    weights = {"a": raw("a", normal(1, 64, 96), first), "b": raw("b", normal(2, 64, 96), second)}
    for between in ([], [ops.Scale("y", 1.0)]):
        body: list[ops.Op] = [ops.Linear("x", "y", "a"), *between, ops.Linear("x", "y", "b", None, True)]
        for count in (3, 70):
            case = around(body, {"x": normal(3, count, 96)}, weights, widths={"y": 64}, out="y")
            found, wanted = outputs(case, isa, compute="int8")
            assert difference(found, wanted) <= TOLERANCE


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("bad", [0x7C00, 0xFC00, 0x7E00, 0x7F80, 0xFF80, 0x7FC0])
def test_a_weight_that_is_not_finite_is_not_lost(isa: str, kind: str, bad: int) -> None:
    """The identity that brings logits out spreads it over the row."""
    weight = any_halves(kind, 33, 32, seed=4)
    words = weight.data.view("<u2").copy()
    words[5 * 32 + 7] = bad
    weight = RawTensor("w", kind, weight.shape, words.view(np.uint8))
    found = product(weight, np.eye(32, dtype=np.float32)[7:8], isa, "float32")[0]
    wanted = dequantize(weight)[:, 7]
    if np.isfinite(wanted[5]):
        np.testing.assert_array_equal(found, wanted)
    else:
        assert not np.isfinite(found).any()


@pytest.mark.skipif(not {"avx2", "avx512"} <= set(paths()), reason="needs a processor with both")
@pytest.mark.parametrize("kind", [*HALVES, "F32"])
def test_avx2_and_avx512_multiply_real_numbers_to_the_same_bits(kind: str) -> None:
    for count in (1, 3, 8, 16, 29):
        weight, x = raw("w", normal(1, 75, 640), kind), normal(2, count, 640)
        wanted = product(weight, x, "avx2", "int8")
        np.testing.assert_array_equal(product(weight, x, "avx512", "int8"), wanted)


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("compute", ["int8", "float32"])
def test_halves_take_two_bytes_a_weight_once_packed(isa: str, kind: str, compute: str) -> None:
    """But f16 on the portable path, which has no instruction to widen it: there it is widened once."""
    x = normal(6, 1, 320)
    half, single = (interpreter(raw("w", normal(5, 640, 320), t), x, isa, compute) for t in (kind, "F32"))
    assert single.packed_bytes - half.packed_bytes == (0 if (kind, isa) == ("F16", "portable") else 640 * 320 * 2)
