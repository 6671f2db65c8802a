"""Pool, prefix cache and tier by themselves: examples, and random lives against a plain model."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from puna.sched.block_pool import BlockPool
from puna.sched.prefix_cache import PrefixCache, extend_hashes
from puna.sched.sequence import Sequence
from puna.sched.tier import HostTier

from .fake_kv import make_sequence


def hashes(tokens: list[int], block_size: int = 2, **fields: object) -> list[bytes]:
    sequence = make_sequence(0, tokens, 99, **fields)
    extend_hashes(sequence, len(tokens) // block_size, block_size)
    return sequence.block_hashes


def test_the_null_block_is_never_handed_out() -> None:
    pool = BlockPool(5, PrefixCache(5, 4))
    assert sorted(pool.allocate(4)) == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="0 are free"):
        pool.allocate(1)


def test_a_block_cannot_be_released_twice() -> None:
    pool = BlockPool(5, PrefixCache(5, 4))
    blocks = pool.allocate(2)
    pool.release(blocks)
    with pytest.raises(ValueError, match="more often than it was taken"):
        pool.release(blocks)
    with pytest.raises(ValueError, match="more often"):
        pool.release([0])


def test_a_free_block_that_holds_nothing_cannot_be_shared() -> None:
    pool = BlockPool(5, PrefixCache(5, 4))
    for block in (0, 3):
        with pytest.raises(ValueError, match="holds nothing"):
            pool.share([block])


def test_of_two_equal_blocks_the_first_stays_findable_and_the_other_may_go() -> None:
    cache = PrefixCache(9, 2)
    pool = BlockPool(9, cache)
    first, second = (make_sequence(i, [1, 2, 3, 4], 9, blocks=pool.allocate(2)) for i in range(2))
    cache.insert(first, 0, 2)
    cache.insert(second, 0, 2)
    assert cache.lookup(second, 2) == first.blocks
    pool.release(second.blocks)
    pool.allocate(6)
    assert cache.lookup(second, 2) == first.blocks
    assert cache.evictions == 0


def test_hashes_are_computed_once_and_go_on_where_they_stopped() -> None:
    sequence = make_sequence(0, [1, 2, 3, 4], 99, extra_keys=(("adapter", "a"),), cache_salt="s")
    extend_hashes(sequence, 1, 2)
    first = sequence.block_hashes[0]
    extend_hashes(sequence, 2, 2)
    assert sequence.block_hashes[0] is first
    assert sequence.block_hashes == hashes([1, 2, 3, 4], extra_keys=(("adapter", "a"),), cache_salt="s")


def test_the_salt_enters_the_first_block_and_the_chain_carries_it_on() -> None:
    plain, salted = hashes([1, 2, 3, 4]), hashes([1, 2, 3, 4], cache_salt="s")
    assert not set(plain) & set(salted)


def test_tagged_keys_cannot_be_mistaken_for_one_another() -> None:
    chains = [
        hashes([1, 2], extra_keys=keys, cache_salt=salt)[0]
        for keys, salt in [
            ((), ""),
            ((("a", "b"),), ""),
            ((("ab", ""),), ""),
            ((("", "ab"),), ""),
            ((("a", ""), ("b", "")), ""),
            ((), "ab"),
            ((), "a"),
            ((("a", "b"),), "a"),
            ((("a", "\ud800"),), ""),  # a lone surrogate, as JSON can bring
        ]
    ]
    assert len(set(chains)) == len(chains)


@given(st.lists(st.integers(0, 2**31 - 1), max_size=20), st.lists(st.integers(0, 2**31 - 1), max_size=20))
def test_hashes_are_equal_exactly_where_the_tokens_before_are(left: list[int], right: list[int]) -> None:
    for index, (a, b) in enumerate(zip(hashes(left), hashes(right), strict=False)):
        end = 2 * (index + 1)
        assert (a == b) == (left[:end] == right[:end])


def test_a_tier_gives_all_slots_wanted_or_none() -> None:
    tier = HostTier(3)
    slots = tier.reserve(2)
    assert slots is not None
    assert tier.reserve(2) is None
    assert tier.free_count == 1
    tier.release(slots)
    assert tier.free_count == 3
    with pytest.raises(ValueError, match="not taken"):
        tier.release(slots)


class PoolMachine(RuleBasedStateMachine):
    """Tables of random sequences; the model is a list of free blocks in the order in which they must be used."""

    @initialize(blocks=st.integers(2, 10))
    def start(self, blocks: int) -> None:
        self.cache = PrefixCache(blocks, 1)
        self.pool = BlockPool(blocks, self.cache)
        self.tables: list[Sequence] = []
        self.plain = list(range(1, blocks))  # free, nothing cached: next one first
        self.cached: list[int] = []  # free and cached: least recently used first

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=4), full=st.booleans())
    def open(self, tokens: list[int], full: bool) -> None:
        sequence = make_sequence(0, tokens, 99)
        hits = self.cache.lookup(sequence, len(tokens))
        revived = [block for block in hits if block in self.cached]
        fresh = len(tokens) - len(hits)
        if fresh > self.pool.free_count - len(revived):
            return
        self.pool.share(hits)
        self.cached = [block for block in self.cached if block not in revived]
        order = self.plain + self.cached
        taken = self.pool.allocate(fresh)
        assert taken == order[:fresh]
        self.plain = [block for block in self.plain if block not in taken]
        self.cached = [block for block in self.cached if block not in taken]
        sequence.blocks = hits + taken
        if full:
            self.cache.insert(sequence, len(hits), len(tokens))
        self.tables.append(sequence)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent = data.draw(st.sampled_from(self.tables))
        self.pool.share(parent.blocks)
        self.tables.append(make_sequence(0, list(parent.tokens), 99, blocks=list(parent.blocks)))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        sequence = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        held = {block for other in self.tables for block in other.blocks}
        self.pool.release(sequence.blocks)
        for block in reversed(sequence.blocks):
            if block not in held and self.cache.hash_of[block] is None:
                self.plain.insert(0, block)
            elif block not in held:
                self.cached.append(block)

    @invariant()
    def all_adds_up(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check(sequence.blocks for sequence in self.tables)
            self.cache.check()
            assert self.pool.free_count == len(self.plain) + len(self.cached)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
