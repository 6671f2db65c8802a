"""A matrix that is also a table of embeddings is kept once: its rows are read back from what was packed, to the bit.

Every type is read from every layout that it is packed into, also where the last panel is not full.
"""

from __future__ import annotations

import numpy as np
import pytest

from puna.kernels.batch import KVConfig
from puna.kernels.cpu import NativeInterpreter
from puna.kernels.program import Embed, EmbedPositions, Linear, Program
from puna.kernels.reference.dequantize import dequantize
from puna.kernels.tensor import BLOCK_SIZES, PLAIN_TYPES, RawTensor
from tests.kernels.steps import F32, raw, step
from tests.kernels.test_operators import any_bytes

TYPES = sorted({"F32", "F16", "BF16"} | (BLOCK_SIZES.keys() - PLAIN_TYPES))


def read_rows(table: RawTensor, ids: list[int], *, compute: str, tied: bool, positions: bool = False) -> F32:
    """Rows `ids` of a table as a step reads them: from packed panels (`tied`), or as the table lies in its file.
    With `positions`, the rows of the tokens' places are added."""
    count, width = table.shape
    body = [Embed("hidden", "table"), *([EmbedPositions("hidden", "table", 0)] if positions else [])]
    program = Program(
        buffers={"hidden": width, "other": count, "logits": width},
        body=(*body, *([Linear("hidden", "other", "table")] if tied else [])),
        head=(Linear("hidden", "logits", "identity"),),
        kv=(),
        vocab_size=width,
    )
    weights = {"table": table, "identity": raw("identity", np.eye(width, dtype=np.float32))}
    native = NativeInterpreter(program, weights, KVConfig(9), threads=2, compute=compute)
    logits = native.step(step([(ids, 0, range(1, 9))])).logits
    assert logits is not None
    return logits


@pytest.mark.parametrize("compute", ["int8", "float32"])
@pytest.mark.parametrize("kind", TYPES)
def test_rows_of_a_packed_matrix_are_those_of_the_file(kind: str, compute: str) -> None:
    small, large = (96, 192) if BLOCK_SIZES[kind][0] <= 32 else (256, 512)
    for table in (any_bytes(kind, 96, small, seed=5), any_bytes(kind, 75, large, seed=6)):
        ids = np.random.default_rng(7).permutation(len(dequantize(table))).tolist()
        wanted = dequantize(table)[ids]
        np.testing.assert_array_equal(read_rows(table, ids, compute=compute, tied=True), wanted)
        np.testing.assert_array_equal(read_rows(table, ids, compute=compute, tied=False), wanted)


def test_rows_of_positions_are_read_from_a_packed_matrix_too() -> None:
    table = raw("table", np.random.default_rng(8).standard_normal((40, 64), np.float32), "Q8_0")
    ids = [3, 39, 0, 17]
    wanted = dequantize(table)[ids] + dequantize(table)[[0, 1, 2, 3]]
    np.testing.assert_array_equal(read_rows(table, ids, compute="int8", tied=True, positions=True), wanted)


def test_a_table_of_one_row_is_read() -> None:
    table = raw("table", np.arange(32, dtype=np.float32).reshape(1, 32))
    for tied in (False, True):
        found = read_rows(table, [0, 0], compute="float32", tied=tied)
        np.testing.assert_array_equal(found, dequantize(table)[[0, 0]])
