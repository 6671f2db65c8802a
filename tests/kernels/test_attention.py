"""Attention over block tables: the native core is its NumPy twin, and both are what the definition says.

Random histories of several sequences in shuffled blocks are written and read over several ragged steps, prefill chunks
and single tokens mixed. Deviations are relative to the largest value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puna.kernels import program as ops
from puna.kernels.batch import MOVE_COPY, MOVE_IN, MOVE_OUT, Interpreter, KVConfig, attends_on_tiles
from puna.kernels.cpu import NativeInterpreter
from puna.kernels.reference.attention import round_to_bf16, round_to_int8
from puna.kernels.reference.interpreter import ReferenceInterpreter
from tests.kernels.sanitized import examples
from tests.kernels.steps import F32, Case, around, difference, raw, step

TOLERANCE = 1e-5
# Where factors are rounded to bf16, a score of size 10 is wrong by up to a hundredth, and so are weights.
ROUNDED_TOLERANCE = 3e-2
# Beside the twin that rounds likewise: a rounding may fall to the other side, a unit in the last of 8 bits.
ROUNDED_BESIDE_TWIN = 2.0**-8
ROUNDED: dict[str, Callable[[F32], F32]] = {
    "f32": lambda x: x,
    "f16": lambda x: x.astype(np.float16).astype(np.float32),
    "bf16": round_to_bf16,
    "int8": round_to_int8,
}
TOKENS = 90  # rows that the tables of queries, keys and values know


@dataclass(frozen=True)
class Shape:
    kv_heads: int = 2
    group: int = 3
    head_dim: int = 32
    window: int = 0
    softcap: float = 0.0

    @property
    def op(self) -> ops.Attend:
        heads = self.kv_heads * self.group
        return ops.Attend(
            0, "q", "y", heads, self.kv_heads, self.head_dim, self.head_dim**-0.5, self.window, self.softcap
        )


def tables_of(shape: Shape, seed: int) -> dict[str, F32]:
    random = np.random.default_rng(seed)
    small, large = shape.kv_heads * shape.head_dim, shape.kv_heads * shape.group * shape.head_dim
    spread = {"q": 2.0, "k": 2.0, "v": 1.0}
    return {
        name: (spread[name] * random.standard_normal((TOKENS, width))).astype(np.float32)
        for name, width in (("q", large), ("k", small), ("v", small))
    }


def case_of(shape: Shape, tables: dict[str, F32]) -> Case:
    width = shape.kv_heads * shape.group * shape.head_dim
    kv = (ops.KVShape(shape.kv_heads, shape.head_dim),)
    return around([ops.StoreKV(0, "k", "v"), shape.op], tables, {}, widths={"y": width}, out="y", kv=kv)


def defined(shape: Shape, tables: dict[str, F32], ids: Sequence[int], dtype: str) -> F32:
    """Attention of every token of one sequence, in float64 and token by token."""
    keys, values = tables["k"][list(ids)], tables["v"][list(ids)]
    each = (len(ids), shape.kv_heads, shape.head_dim)
    keys = ROUNDED[dtype](keys.reshape(each)).astype(float)
    values = ROUNDED[dtype](values.reshape(each)).astype(float)
    queries = tables["q"][list(ids)].reshape(len(ids), shape.kv_heads, shape.group, shape.head_dim).astype(float)
    out = np.zeros_like(queries)
    for p in range(len(ids)):
        low = max(0, p - shape.window + 1) if shape.window else 0
        scores = np.einsum("tkd,kgd->kgt", keys[low : p + 1], queries[p]) * np.float32(shape.op.scale)
        if shape.softcap:
            scores = shape.softcap * np.tanh(scores / shape.softcap)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out[p] = np.einsum("kgt,tkd->kgd", weights, values[low : p + 1])
    return out.reshape(len(ids), -1).astype(np.float32)


def tolerance_of(native: NativeInterpreter) -> float:
    """Of what is defined, where the native core computes attention in float32 or on tiles."""
    on_tiles = attends_on_tiles(native.program.kv[0].head_dim, native.kv.dtype)
    return ROUNDED_TOLERANCE if native.rounding == "bf16" and on_tiles else TOLERANCE


def assert_sequences_attend_as_defined(
    shape: Shape, kv: KVConfig, isa: str, seed: int, lengths: Sequence[int], threads: int = 2
) -> None:
    """Sequences of random tokens are computed in random pieces, some of them in each step, in random order."""
    random = np.random.default_rng(seed)
    tables = tables_of(shape, seed)
    case = case_of(shape, tables)
    native = NativeInterpreter(case.program, case.weights, kv, isa=isa, threads=threads)
    twin = ReferenceInterpreter(case.program, case.weights, kv, rounding=native.rounding)
    tolerance = tolerance_of(native)
    sequences = [random.integers(0, TOKENS, length).tolist() for length in lengths]
    free = (1 + random.permutation(kv.num_blocks - 1)).tolist()
    blocks = [[free.pop() for _ in range(-(-length // kv.block_size))] for length in lengths]
    width = shape.kv_heads * shape.group * shape.head_dim
    wanted = [defined(shape, tables, ids, kv.dtype) for ids in sequences]
    done = [0] * len(sequences)
    while any(d < len(ids) for d, ids in zip(done, sequences, strict=True)):
        chosen = [r for r in random.permutation(len(sequences)) if done[r] < lengths[r] and random.random() < 0.8]
        ends = {r: min(lengths[r], done[r] + int(random.choice([1, 1, 5, 16, 17, 40]))) for r in chosen}
        batch = step([(sequences[r][done[r] : ends[r]], done[r], blocks[r]) for r in chosen])
        found, expected = native.step(batch).logits, twin.step(batch).logits
        assert found is not None
        assert expected is not None
        if not chosen:
            continue
        right = np.concatenate([wanted[r][done[r] : ends[r]] for r in chosen])
        assert difference(found[:, :width], right) <= tolerance
        assert difference(expected[:, :width], right) <= tolerance
        if tolerance > TOLERANCE:
            assert difference(found[:, :width], expected[:, :width]) <= ROUNDED_BESIDE_TWIN
        for r in chosen:
            done[r] = ends[r]


@settings(
    max_examples=examples(8),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.integers(1, 120), min_size=1, max_size=5),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 9),
    head_dim=st.sampled_from([16, 32, 48, 64, 80, 128]),
    window=st.sampled_from([0, 0, 1, 2, 15, 16, 17, 33, 64]),
    softcap=st.sampled_from([0.0, 0.0, 5.0, 30.0]),
)
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "int8"])
@pytest.mark.parametrize("block_size", [16, 32])
def test_ragged_steps_over_shuffled_blocks_attend_as_defined(
    isa: str,
    dtype: str,
    block_size: int,
    seed: int,
    lengths: list[int],
    kv_heads: int,
    group: int,
    head_dim: int,
    window: int,
    softcap: float,
) -> None:
    kv_heads = min(kv_heads, max(1, 768 // (group * head_dim)))  # wider rows only take longer
    shape = Shape(kv_heads, group, head_dim, window, softcap)
    assert_sequences_attend_as_defined(shape, KVConfig(48, block_size, dtype), isa, seed, lengths)


@pytest.mark.parametrize("group", range(1, 10))
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_every_size_of_group_and_head_attends_as_defined(isa: str, group: int, head_dim: int) -> None:
    shape = Shape(kv_heads=2 if head_dim < 128 else 1, group=group, head_dim=head_dim)
    assert_sequences_attend_as_defined(shape, KVConfig(20, 16, "f16"), isa, group, [37, 1, 64, 16])


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_a_long_history_attends_as_defined(isa: str, dtype: str) -> None:
    shape = Shape(kv_heads=1, group=3, head_dim=64)
    assert_sequences_attend_as_defined(shape, KVConfig(70, 16, dtype), isa, 5, [1000])


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "int8"])
@pytest.mark.parametrize("head_dim", [16, 32])
def test_what_others_left_in_a_block_is_never_read(isa: str, dtype: str, head_dim: int) -> None:
    """Blocks full of NaN are given to a short sequence, which ends in the middle of a pair, a tile and a block."""
    shape = Shape(kv_heads=1, group=2, head_dim=head_dim)
    tables = tables_of(shape, 6)
    tables["k"][50:] = tables["v"][50:] = np.nan
    case = case_of(shape, tables)
    results = []
    for used in (False, True):
        native = NativeInterpreter(case.program, case.weights, KVConfig(4, 32, dtype), isa=isa, threads=1)
        if used:
            native.step(step([([50] * 64, 0, [1, 2])]))
        first = native.step(step([(range(35), 0, [1, 2])])).logits
        assert first is not None
        then = native.step(step([([35, 36], 35, [1, 2])])).logits
        assert then is not None
        results.append(np.concatenate([first, then]))
    assert np.isfinite(results[0]).all()
    np.testing.assert_array_equal(*results)


def test_large_scores_neither_overflow_nor_lose_the_best_key(isa: str) -> None:
    shape = Shape(kv_heads=1, group=2, head_dim=16)
    tables = tables_of(shape, 3)
    tables["q"] *= 100
    case = case_of(shape, tables)
    kv = KVConfig(8, 16, "f32")
    batch = step([(range(60), 0, [3, 1, 2, 4])])
    found = NativeInterpreter(case.program, case.weights, kv, isa=isa, threads=1).step(batch).logits
    assert found is not None
    assert difference(found[:, :32], defined(shape, tables, range(60), "f32")) <= 1e-3


def bits(*patterns: int) -> F32:
    return np.array(patterns, np.uint32).view(np.float32)


@pytest.mark.parametrize("head_dim", [16, 32])
def test_a_pool_rounds_to_nearest_even_or_not_at_all(isa: str, head_dim: int) -> None:
    """The first token of a sequence sees itself only: what it reads is its own value, as it was stored."""
    shape = Shape(kv_heads=1, group=1, head_dim=head_dim)
    tables = tables_of(shape, 1)
    special = bits(0x3F808000, 0x3F818000, 0x3F808001, 0x80008000, 0x3F801000, 0x3F803000, 0x3F801001)
    small = np.array([2.0**-24, 2.0**-25, 1.5 * 2.0**-25, 6e-5, -(2.0**-15) - 2.0**-25, 65504, -70000, 0], np.float32)
    tables["v"][:15] = np.concatenate([special, small])[:, None]
    case = case_of(shape, tables)
    for dtype in ("f32", "f16", "bf16"):
        rounded = ROUNDED[dtype]
        kv = KVConfig(TOKENS + 1, 16, dtype)
        native = NativeInterpreter(case.program, case.weights, kv, isa=isa, threads=1)
        stored = tables["v"].clip(-65504, 65504) if dtype == "f16" else tables["v"]
        for interpreter in (native, ReferenceInterpreter(case.program, case.weights, kv)):
            found = interpreter.step(step([([i], 0, [1 + i]) for i in range(TOKENS)])).logits
            assert found is not None
            np.testing.assert_array_equal(found[:, :head_dim], rounded(stored), err_msg=dtype)


def test_int8_keeps_one_scale_a_token_and_head(isa: str) -> None:
    """A token that sees itself alone reads its own values, as they were stored: heads of very different sizes."""
    shape = Shape(kv_heads=2, group=1, head_dim=32)
    tables = tables_of(shape, 2)
    tables["v"][:, 32:] *= 1e-4
    tables["v"][7] = 0
    tables["v"][8, :32] = 1e-35
    case = case_of(shape, tables)
    kv = KVConfig(TOKENS + 1, 16, "int8")
    native = NativeInterpreter(case.program, case.weights, kv, isa=isa, threads=2)
    found = native.step(step([([i], 0, [1 + i]) for i in range(TOKENS)])).logits
    assert found is not None
    heads = tables["v"].reshape(TOKENS, 2, 32)
    np.testing.assert_array_equal(found[:, :64].reshape(TOKENS, 2, 32), round_to_int8(heads))
    error = np.abs(found[:, :64].reshape(TOKENS, 2, 32) - heads).max(axis=-1)
    assert (error <= np.abs(heads).max(axis=-1) / 253 + 1e-30).all()


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "int8"])
@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_what_is_no_number_stays_none_and_harms_no_earlier_token(
    isa: str, dtype: str, softcap: float, where: str
) -> None:
    """Token 40 carries a NaN: it and those after that see it are NaN, those before are what they were."""
    shape = Shape(kv_heads=1, group=3, head_dim=32, softcap=softcap)
    tables = tables_of(shape, 4)
    results = []
    for spoilt in (False, True):
        if spoilt:
            tables[where][40, 5] = np.nan
        case = case_of(shape, tables)
        native = NativeInterpreter(case.program, case.weights, KVConfig(8, 16, dtype), isa=isa, threads=2)
        out = native.step(step([(range(60), 0, [3, 1, 2, 4])])).logits
        assert out is not None
        results.append(out[:, : 3 * 32])
    sound, found = results
    np.testing.assert_array_equal(found[:40], sound[:40])
    # The product that turns rows into logits spreads a NaN over its row.
    assert np.isnan(found[40]).all()
    if where == "q":
        np.testing.assert_array_equal(found[41:], sound[41:])
    else:
        assert np.isnan(found[41:]).all()


@pytest.mark.parametrize("dead", [range(128), range(128, 256), range(256, 300), range(5, 290)])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_keys_that_score_minus_infinity_weigh_nothing_beside_others(isa: str, dtype: str, dead: range) -> None:
    """Wherever they lie in ranges of 128, at once and behind a history; where all keys are such, the result is NaN."""
    shape = Shape(kv_heads=1, group=3, head_dim=32)
    tables = tables_of(shape, 6)
    tables["q"], tables["k"] = np.abs(tables["q"]) * 1e20, tables["k"] * 1e-20
    tables["k"][0] = -1e30
    ids = [0 if p in dead else 1 + p % (TOKENS - 1) for p in range(301)]
    case, kv = case_of(shape, tables), KVConfig(24, 16, dtype)
    native = NativeInterpreter(case.program, case.weights, kv, isa=isa, threads=2)
    for interpreter in (native, ReferenceInterpreter(case.program, case.weights, kv, rounding=native.rounding)):
        blocks = [7, *range(1, 7), *range(8, 23)]
        outs = [interpreter.step(step([(ids[a:b], a, blocks)])).logits for a, b in ((0, 300), (300, 301))]
        found = np.concatenate([out[:, : 3 * 32] for out in outs if out is not None])
        blind = dead.stop if dead.start == 0 else 0
        assert np.isnan(found[:blind]).all()
        assert difference(found[blind:], defined(shape, tables, ids, dtype)[blind:]) <= tolerance_of(native)


@pytest.mark.parametrize(("dtype", "head_dim"), [("f32", 16), ("bf16", 32)])
def test_an_infinite_value_is_nan_even_where_its_score_is_minus_infinity(isa: str, dtype: str, head_dim: int) -> None:
    """0 times infinity, as in the twin; tokens that do not see it are what they were."""
    shape = Shape(kv_heads=1, group=2, head_dim=head_dim)
    tables = tables_of(shape, 7)
    tables["q"] = np.abs(tables["q"]) * 1e20
    tables["k"] *= 1e-20
    tables["k"][0], tables["v"][0] = -1e30, -np.inf
    ids = [1 + p % 60 for p in range(130)] + [0] * 120 + [1] * 10
    case, kv = case_of(shape, tables), KVConfig(20, 16, dtype)
    native = NativeInterpreter(case.program, case.weights, kv, isa=isa, threads=2)
    width = 2 * head_dim
    wanted = defined(shape, tables, ids[:130], dtype)
    for interpreter in (native, ReferenceInterpreter(case.program, case.weights, kv, rounding=native.rounding)):
        found = interpreter.step(step([(ids, 0, range(1, 18))])).logits
        assert found is not None
        assert difference(found[:130, :width], wanted) <= tolerance_of(native)
        assert np.isnan(found[130:, :width]).all()


def test_the_twin_rounds_to_bf16_by_hand() -> None:
    found = round_to_bf16(bits(0x3F808000, 0x3F818000, 0x3F808001, 0x80008000))
    np.testing.assert_array_equal(found, bits(0x3F800000, 0x3F820000, 0x3F810000, 0x80000000))


class Pool:
    """Blocks of one interpreter, written and read through steps: every token of a block is the same row of a table."""

    def __init__(self, interpreter: Interpreter, tables: dict[str, F32]) -> None:
        self.interpreter = interpreter
        self.tables = tables

    def write(self, block: int, row: int, moves: Sequence[tuple[int, int, int]] = ()) -> None:
        self.interpreter.step(step([([row] * 16, 0, [block])], moves=moves))

    def read(self, block: int, moves: Sequence[tuple[int, int, int]] = ()) -> int:
        """The row that fills a block: a token behind it, in a scratch block, sees 16 of them and itself."""
        logits = self.interpreter.step(step([([0], 16, [block, 9])], moves=moves)).logits
        assert logits is not None
        seen = logits[0, :16]
        query, own = self.tables["q"][0].astype(float), self.tables["k"][0].astype(float) @ self.tables["q"][0] / 4
        for row in range(TOKENS):
            weights = np.exp(np.array([own, *[self.tables["k"][row] @ query / 4] * 16]))
            values = np.vstack([self.tables["v"][0], *[self.tables["v"][row]] * 16])
            if np.abs(weights / weights.sum() @ values - seen).max() < 1e-4:
                return row
        raise AssertionError(f"block {block} holds no row of the table: {seen}")


@pytest.fixture(params=["native", "reference"])
def pool(isa: str, request: pytest.FixtureRequest) -> Pool:
    shape = Shape(kv_heads=1, group=1, head_dim=16)
    tables = tables_of(shape, 11)
    case = case_of(shape, tables)
    kv = KVConfig(num_blocks=10, block_size=16, dtype="f32", tier_blocks=4)
    if request.param == "native":
        return Pool(NativeInterpreter(case.program, case.weights, kv, isa=isa, threads=2), tables)
    return Pool(ReferenceInterpreter(case.program, case.weights, kv), tables)


def test_a_copy_leaves_its_source_and_is_independent_of_it(pool: Pool) -> None:
    pool.write(1, 21)
    assert pool.read(2, [(MOVE_COPY, 1, 2)]) == 21
    pool.write(1, 22)
    assert (pool.read(1), pool.read(2)) == (22, 21)


def test_what_is_swapped_out_comes_back_elsewhere(pool: Pool) -> None:
    pool.write(3, 31)
    pool.write(3, 32, [(MOVE_OUT, 3, 0)])
    assert pool.read(3) == 32
    assert pool.read(5, [(MOVE_IN, 0, 5)]) == 31
    assert pool.read(6, [(MOVE_IN, 0, 6)]) == 31


def test_moves_run_in_their_order_and_before_the_step_writes(pool: Pool) -> None:
    for block, row in ((1, 41), (2, 42), (3, 43)):
        pool.write(block, row)
    # A rotation of three blocks through the tier, and then an overwrite of the first by this step's own tokens.
    moves = [(MOVE_OUT, 1, 2), (MOVE_COPY, 2, 1), (MOVE_COPY, 3, 2), (MOVE_IN, 2, 3), (MOVE_COPY, 1, 4)]
    pool.write(1, 44, moves)
    assert [pool.read(block) for block in (1, 2, 3, 4)] == [44, 43, 41, 42]


def test_a_step_of_moves_alone_moves(pool: Pool) -> None:
    pool.write(1, 51)
    pool.interpreter.step(step([], moves=[(MOVE_COPY, 1, 7), (MOVE_COPY, 7, 7)]))
    assert pool.read(7) == 51


def test_moves_carry_every_layer_and_head(isa: str) -> None:
    """Two layers of different shapes, keys and values of several heads."""
    shapes = (ops.KVShape(3, 16), ops.KVShape(2, 32))
    random = np.random.default_rng(0)
    tables = {
        name: random.standard_normal((40, width)).astype(np.float32)
        for name, width in (("q0", 48), ("k0", 48), ("v0", 48), ("q1", 64), ("k1", 64), ("v1", 64))
    }
    body: list[ops.Op] = [
        ops.StoreKV(0, "k0", "v0"),
        ops.StoreKV(1, "k1", "v1"),
        ops.Attend(0, "q0", "y0", 3, 3, 16, 0.25),
        ops.Attend(1, "q1", "y1", 2, 2, 32, 0.25),
        ops.Linear("y0", "y1", "widen", None, True),
    ]
    weights = {"widen": raw("widen", random.standard_normal((64, 48)))}
    case = around(body, tables, weights, widths={"y0": 48, "y1": 64}, out="y1", kv=shapes)
    kv = KVConfig(num_blocks=12, block_size=16, dtype="bf16", tier_blocks=3)
    moved = NativeInterpreter(case.program, case.weights, kv, isa=isa, threads=2)
    still = NativeInterpreter(case.program, case.weights, kv, isa=isa, threads=2)
    for interpreter in (moved, still):
        interpreter.step(step([(range(20), 0, [1, 2])]))
    moves = [(MOVE_OUT, 1, 2), (MOVE_OUT, 2, 0), (MOVE_IN, 2, 11), (MOVE_IN, 0, 7), (MOVE_COPY, 7, 8)]
    found = moved.step(step([([20, 21], 20, [11, 8])], moves=moves)).logits
    wanted = still.step(step([([20, 21], 20, [1, 2])])).logits
    np.testing.assert_array_equal(found, wanted)
