"""The buddy allocator and the tables on top of it: ranges never overlap, nothing is lost, halves join again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.errors import InputError
from puna.plan.buddy import BuddyAllocator
from puna.plan.reserved_tables import RESERVATIONS, BuddyPool, ReservedTables
from puna.sched.config import SchedulerConfig
from puna.sched.prefix_cache import PrefixCache


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 300), wishes=st.lists(st.integers(-6, 70), max_size=60))
def test_ranges_never_overlap_and_what_is_given_back_can_be_had_again(size: int, wishes: list[int]) -> None:
    buddy = BuddyAllocator(size)
    taken: list[tuple[int, int]] = []
    for wish in wishes:
        if wish < 1:
            if taken:
                buddy.free(taken.pop(-wish % len(taken))[0])
        elif buddy.has_room(wish):
            offset = buddy.allocate(wish)
            assert all(offset + wish <= other or other + units <= offset for other, units in taken)
            taken.append((offset, wish))
        else:
            with pytest.raises(ValueError, match="no free range"):
                buddy.allocate(wish)
        buddy.check()
    for offset, _ in taken:
        buddy.free(offset)
    buddy.check()
    assert buddy.free_units == size
    assert buddy.allocate(buddy.largest) == 0  # all halves have joined


def test_the_smallest_range_that_holds_it_is_split_and_the_lowest_is_taken() -> None:
    buddy = BuddyAllocator(15700)  # 8192 + 4096 + 2048 + ...
    assert [buddy.allocate(2048) for _ in range(7)] == [12288, 8192, 10240, 0, 2048, 4096, 6144]
    assert not buddy.has_room(2048)
    assert buddy.has_room(1024)
    assert buddy.free_units == 15700 - 7 * 2048
    for offset in (8192, 0):  # whose other halves are taken
        buddy.free(offset)
    assert buddy.allocate(2000) == 0


def test_a_range_is_given_back_once_and_at_its_beginning() -> None:
    buddy = BuddyAllocator(16)
    offset = buddy.allocate(3)
    buddy.free(offset)
    for wrong in (offset, 1):
        with pytest.raises(ValueError, match="no range begins"):
            buddy.free(wrong)
    with pytest.raises(ValueError, match="one at least"):
        buddy.allocate(0)


def test_blocks_of_a_pool_come_side_by_side_and_never_the_null_block() -> None:
    pool = BuddyPool(17, PrefixCache(17, 1))
    first, second = pool.allocate(3), pool.allocate(5)
    assert first == [1, 2, 3]
    assert second == list(range(second[0], second[0] + 5))
    pool.check([first, second])
    assert pool.free_count == 16 - 4 - 8
    with pytest.raises(ValueError, match="one owner"):
        pool.share(first)
    pool.release(first)
    pool.release(second)
    pool.check([])
    assert pool.free_count == 16


def test_a_pool_that_cannot_hold_the_longest_reservation_is_refused() -> None:
    config = SchedulerConfig(num_blocks=1500, max_model_len=1024, block_size=1, prefix_cache=False)
    ReservedTables(config, RESERVATIONS["max"])
    for wrong in ({"max_model_len": 1025}, {"prefix_cache": True}):
        fields = {"num_blocks": 1500, "max_model_len": 1024, "block_size": 1, "prefix_cache": False, **wrong}
        with pytest.raises(InputError, match=r"contiguous range|share nothing"):
            ReservedTables(SchedulerConfig(**fields), RESERVATIONS["max"])  # type: ignore[arg-type]
