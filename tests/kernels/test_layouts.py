"""Products of matrices of every quantised type, on every path, beside sums in double precision.

Bytes are random, and so are scales, subnormal ones among them. The weights are those that the NumPy decoders make; the
activations are rounded as the path rounds them. Types without a layout of their own are packed as whole multiples of
a factor of sixteen values each.
"""

from __future__ import annotations

import numpy as np
import pytest

from puna.errors import ModelFileError
from puna.kernels import program as ops
from puna.kernels.batch import KVConfig
from puna.kernels.cpu import NativeInterpreter, paths
from puna.kernels.reference import operators
from puna.kernels.reference.dequantize import dequantize
from puna.kernels.tensor import BLOCK_SIZES, PLAIN_TYPES, RawTensor, packed_bits
from tests.kernels.steps import F32, around, step
from tests.kernels.test_operators import any_bytes, normal

TYPES = sorted(BLOCK_SIZES.keys() - PLAIN_TYPES)
COUNTS = (1, 2, 3, 8, 12, 33, 70)
TOLERANCE = 1e-6  # of the largest sum of a product's terms' absolute values


def interpreter(weight: RawTensor, x: F32, isa: str) -> NativeInterpreter:
    case = around([ops.Linear("x", "y", "w")], {"x": x}, {"w": weight}, widths={"y": weight.shape[0]}, out="y")
    return NativeInterpreter(case.program, case.weights, KVConfig(10, 16), isa=isa, threads=2)


def product(native: NativeInterpreter, count: int, n: int) -> F32:
    logits = native.step(step([(range(count), 0, range(1, 2 + count // 16))])).logits
    assert logits is not None
    return logits[:, :n]


def rows_with_outliers(count: int, k: int) -> F32:
    """Most groups are rounded to one byte, some to two; one row is zero, and a group of another."""
    x = normal(1, count, k) * np.exp(normal(2, count, k))
    x[:, ::61] *= 30
    x[1] = 0
    x[2, 32:64] = 0
    return x


@pytest.mark.parametrize("kind", TYPES)
def test_products_are_those_of_the_decoded_weights(isa: str, kind: str) -> None:
    n, k = 41, max(96, 2 * BLOCK_SIZES[kind][0])
    weight = any_bytes(kind, n, k, seed=4)
    x = rows_with_outliers(max(COUNTS), k)
    native = interpreter(weight, x, isa)
    decoded = dequantize(weight)
    tiles = native.rounding == "bf16"
    rounded = operators.round_bf16(x) if tiles else operators.round_rows(x)
    factors = rounded.astype(float), (operators.round_bf16(decoded) if tiles else decoded).astype(float)
    wanted, terms = factors[0] @ factors[1].T, (np.abs(factors[0]) @ np.abs(factors[1]).T).max()
    for count in COUNTS:
        assert np.abs(product(native, count, n) - wanted[:count]).max() <= TOLERANCE * terms


@pytest.mark.skipif("avx512" not in paths(), reason="compares two paths")
@pytest.mark.parametrize("kind", TYPES)
def test_avx2_and_avx512_give_the_same_bits(kind: str) -> None:
    weight = any_bytes(kind, 33, max(64, BLOCK_SIZES[kind][0]), seed=5)
    x = rows_with_outliers(13, weight.shape[1])
    found = [product(interpreter(weight, x, isa), 13, 33) for isa in ("avx2", "avx512")]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("kind", TYPES)
def test_weights_take_the_bytes_of_their_layout(isa: str, kind: str) -> None:
    k = max(256, BLOCK_SIZES[kind][0])
    x = normal(3, 1, k)
    small, large = (interpreter(any_bytes(kind, n, k), x, isa) for n in (32, 96))
    identities = [4 * 32 * (-(-n // 32)) * n for n in (32, 96)]  # of `around`: [n, n] float32, in whole panels
    added = large.packed_bytes - small.packed_bytes - (identities[1] - identities[0])
    assert added == 64 * k * packed_bits(kind) / 8


def test_a_type_of_whole_factors_that_has_none_is_refused_by_name() -> None:
    """No such bytes exist for the types that there are: the core is asked directly."""
    from puna.kernels.cpu import _native

    core = _native.Core("auto", 1, 1, False)
    values = np.full((1, 32), np.pi, np.float32)
    values[0, 3] = 1.0
    with pytest.raises(ValueError, match="sixteen values have no common factor"):
        core.add_weight("GRID", values.view(np.uint8).reshape(-1), 1, 32, True, True)


def test_rows_that_are_no_whole_blocks_are_refused() -> None:
    weight = RawTensor("w", "Q6_K", (2, 96), np.zeros(210, np.uint8))
    with pytest.raises(ModelFileError, match="Q6_K: a row of 96 values is not a whole number of blocks of 256"):
        interpreter(weight, normal(1, 1, 96), "portable")
