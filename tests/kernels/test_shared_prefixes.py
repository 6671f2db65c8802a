"""Sequences that begin with the same blocks: what is computed for all at once is, bit for bit, what each gets alone.

A family is a tree of sequences in one pool. Members are decoded, or prefilled in chunks, once each in steps of its own
and once together, where the native core finds out by itself what they have in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from puna.kernels.batch import KVConfig
from puna.kernels.cpu import NativeInterpreter
from tests.kernels.steps import F32, difference, step
from tests.kernels.test_attention import TOKENS, Shape, case_of, defined, tables_of

SHAPE = Shape(kv_heads=2, group=3, head_dim=32)


@dataclass
class Family:
    """Sequences in one pool. `add` writes a sequence, but for the last `left` tokens; it may begin as another one."""

    native: NativeInterpreter
    width: int
    random: np.random.Generator
    free: list[int]
    ids: list[list[int]] = field(default_factory=list)
    tables: list[list[int]] = field(default_factory=list)
    known: list[int] = field(default_factory=list)  # tokens whose keys and values are in the pool

    def add(self, length: int, left: int, parent: int | None = None, shared_blocks: int = 0) -> None:
        size = self.native.kv.block_size
        beginning = self.ids[parent][: shared_blocks * size] if parent is not None else []
        ids = beginning + self.random.integers(0, TOKENS, length - len(beginning)).tolist()
        blocks = self.tables[parent][:shared_blocks] if parent is not None else []
        blocks = blocks + [self.free.pop() for _ in range(-(-length // size) - len(blocks))]
        self.ids.append(ids)
        self.tables.append(blocks)
        self.known.append(length - left)
        if length - left > len(beginning):
            self.native.step(step([(ids[len(beginning) : length - left], len(beginning), blocks)]))

    def rest(self, members: Sequence[int]) -> list[F32]:
        """What the tokens that are left attend to, members in one step. It can be asked for again."""
        rows = [(self.ids[r][self.known[r] :], self.known[r], self.tables[r]) for r in members]
        logits = self.native.step(step(rows)).logits
        assert logits is not None
        ends = np.cumsum([len(ids) for ids, _, _ in rows])[:-1]
        return list(np.split(logits[:, : self.width], ends))


def family_of(shape: Shape, kv: KVConfig, isa: str, seed: int, threads: int = 2) -> Family:
    case = case_of(shape, tables_of(shape, seed))
    native = NativeInterpreter(case.program, case.weights, kv, isa=isa, threads=threads)
    random = np.random.default_rng(seed)
    free = (1 + random.permutation(kv.num_blocks - 1)).tolist()
    return Family(native, shape.kv_heads * shape.group * shape.head_dim, random, free)


def assert_company_changes_no_bit(family: Family) -> None:
    everyone = range(len(family.ids))
    alone = [family.rest([r])[0] for r in everyone]
    shuffled = family.random.permutation(len(everyone)).tolist()
    for members in (list(everyone), shuffled, shuffled[: len(shuffled) // 2]):
        for r, found in zip(members, family.rest(members), strict=True):
            np.testing.assert_array_equal(found, alone[r], err_msg=f"sequence {r} among {members}")


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "int8"])
@pytest.mark.parametrize("threads", [1, 3])
def test_decoding_on_a_common_prefix_gives_everyone_the_bits_of_decoding_alone(
    isa: str, dtype: str, threads: int
) -> None:
    family = family_of(SHAPE, KVConfig(200, 16, dtype), isa, 1, threads)
    family.add(450, 1)
    for r in range(20):
        family.add(410 + 3 * r, 1, parent=0, shared_blocks=25)
    assert_company_changes_no_bit(family)


def test_what_is_computed_together_is_what_the_definition_says(isa: str) -> None:
    family = family_of(SHAPE, KVConfig(100, 16, "f32"), isa, 2)
    family.add(300, 1)
    for length in (280, 290, 401):
        family.add(length, 2, parent=0, shared_blocks=17)
    tables = tables_of(SHAPE, 2)
    for ids, found in zip(family.ids, family.rest(range(4)), strict=True):
        wanted = defined(SHAPE, tables, ids, "f32")[-len(found) :]
        assert difference(found, wanted) <= 1e-5


def test_groups_within_a_group_change_no_bit(isa: str) -> None:
    """A tree: all share 8 blocks, halves share 24, quarters 40; some are the common beginning and little else."""
    family = family_of(SHAPE, KVConfig(600, 16, "f16"), isa, 3)
    family.add(140, 1)
    for half in range(2):
        family.add(400, 1, parent=0, shared_blocks=8)
        half_at = len(family.ids) - 1
        for quarter in range(2):
            family.add(660, 1, parent=half_at, shared_blocks=24)
            quarter_at = len(family.ids) - 1
            for r in range(5):
                family.add(641 + 40 * r + half + quarter, 1, parent=quarter_at, shared_blocks=40)
    assert_company_changes_no_bit(family)


def test_chunks_of_prompts_behind_a_common_prefix_change_no_bit(isa: str) -> None:
    """Suffixes of different lengths, from one token to more than a tile holds, mixed with decoding."""
    family = family_of(SHAPE, KVConfig(300, 16, "f16"), isa, 4)
    family.add(300, 1)
    for left in (1, 2, 5, 16, 17, 24, 31, 33, 70, 150):
        family.add(288 + left + left % 3, left, parent=0, shared_blocks=17)
    assert_company_changes_no_bit(family)


@pytest.mark.parametrize("window", [200, 280, 300, 1000])
def test_a_window_that_has_left_the_prefix_behind_changes_no_bit(isa: str, window: int) -> None:
    """Some members still see the first key, others do not."""
    family = family_of(Shape(2, 3, 32, window), KVConfig(200, 16, "f16"), isa, 5)
    family.add(270, 1)
    for r in range(8):
        family.add(265 + 9 * r, 3, parent=0, shared_blocks=16)
    assert_company_changes_no_bit(family)


@pytest.mark.parametrize("block_size", [48, 128, 256])
def test_ranges_that_end_within_a_block_change_no_bit(isa: str, block_size: int) -> None:
    family = family_of(SHAPE, KVConfig(60, block_size, "f16"), isa, 6)
    family.add(600, 1)
    for r in range(6):
        family.add(590 + 11 * r, 2, parent=0, shared_blocks=512 // block_size)
    assert_company_changes_no_bit(family)


def test_a_long_prefix_is_shared_by_few_rows_and_many_threads(isa: str) -> None:
    """Fewer tiles than threads: the common ranges themselves are several items."""
    shape = Shape(kv_heads=1, group=1, head_dim=16, softcap=5.0)
    family = family_of(shape, KVConfig(300, 16, "bf16"), isa, 7, threads=4)
    family.add(3000, 1)
    for r in range(3):
        family.add(2990 + 50 * r, 1, parent=0, shared_blocks=180)
    assert_company_changes_no_bit(family)
