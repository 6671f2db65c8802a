"""A row of a product has the same bits however many rows it shares a step with, and whichever they are.

Kernels cut rows into tiles by their number, and may change sides of a product from some number on: every such border
is crossed here, alone or with a neighbour whose values are not finite.
"""

from __future__ import annotations

import numpy as np
import pytest

from puna.kernels import program as ops
from puna.kernels.batch import KVConfig
from puna.kernels.cpu import NativeInterpreter
from puna.kernels.tensor import BLOCK_SIZES, NATIVE_TYPES
from tests.kernels.steps import F32, around, raw, step
from tests.kernels.test_operators import any_bytes

COUNTS = (1, 2, 3, 4, 5, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 80, 255, 257, 530)
MOST = 1060  # more than two blocks of rows on every path


def normal(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def product(x: F32, kind: str, n: int, isa: str) -> F32:
    """x times a random matrix, added to random rows, with a bias."""
    count, k = x.shape
    weights = {"w": any_bytes(kind, n, k, seed=1), "b": raw("b", normal(2, n))}
    tables = {"x": x, "y": normal(3, MOST, n)[:count]}
    case = around([ops.Linear("x", "y", "w", "b", True)], tables, weights, out="y")
    kv = KVConfig(num_blocks=1 + -(-MOST // 16), block_size=16)
    native = NativeInterpreter(case.program, case.weights, kv, isa=isa, threads=2)
    logits = native.step(step([(range(count), 0, range(1, 2 + count // 16))])).logits
    assert logits is not None
    return logits[:, :n]


@pytest.mark.parametrize("kind", sorted(NATIVE_TYPES))
def test_a_row_has_the_same_bits_among_any_number_of_rows(isa: str, kind: str) -> None:
    shapes, most, counts = (((75, 96), (33, 640)), MOST, COUNTS)
    if isa == "portable":  # fifty times as slow; one shape of three groups, which show an order of sums, has to do
        shapes, most, counts = (((41, 96),), 140, (1, 2, 5, 12, 13, 33, 64, 65))
    block = BLOCK_SIZES[kind][0]
    if block > 32:  # of K-quants and their kin, whose layouts differ from others by superblocks alone
        shapes, most, counts = (((41, 2 * block),), 140, (1, 2, 3, 4, 5, 8, 12, 13, 16, 33, 64, 65))
    for n, k in shapes:
        x = normal(4, most, k)
        wanted = product(x, kind, n, isa)
        for count in counts:
            np.testing.assert_array_equal(product(x[:count], kind, n, isa), wanted[:count])


@pytest.mark.parametrize("kind", sorted(NATIVE_TYPES))
@pytest.mark.parametrize("count", [2, 20, 70])
def test_a_row_that_is_not_finite_touches_no_other(isa: str, kind: str, count: int) -> None:
    x = normal(5, count, max(64, BLOCK_SIZES[kind][0]))
    wanted = product(x, kind, 40, isa)
    x[0, 3], x[0, 40] = np.nan, np.inf
    found = product(x, kind, 40, isa)
    assert np.isnan(found[0]).all()
    np.testing.assert_array_equal(found[1:], wanted[1:])
