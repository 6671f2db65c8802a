"""The blocks of KV memory: who refers to each, and which are free.

A block is free when nobody refers to it; a free block may still be found through the prefix cache, and is then revived
by `share`. Free blocks form a doubly linked list in two flat lists of ints, in the order they are to be used up: blocks
without cached contents first, then the least recently used. Block 0, the null block, is never handed out; its links
are the two ends of that list. It knows nothing of sequences: tables are lists of block ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from puna.sched.prefix_cache import PrefixCache


class BlockPool:
    """`refs[block]` counts the tables that hold a block; read it, do not write it. No operation makes an object a
    block, and each costs O(1) a block."""

    def __init__(self, num_blocks: int, cache: PrefixCache) -> None:
        self.refs = [0] * num_blocks
        self.usable = num_blocks - 1
        self.free_count = num_blocks - 1
        self._cache = cache
        self._next = [*range(1, num_blocks), 0]
        self._previous = [num_blocks - 1, *range(num_blocks - 1)]

    def allocate(self, count: int) -> list[int]:
        """`count` free blocks, each with one reference. This is where cached contents are evicted, and nowhere else."""
        if not 0 <= count <= self.free_count:
            raise ValueError(f"{count} blocks wanted, {self.free_count} are free; check free_count first")
        refs, following, hash_of = self.refs, self._next, self._cache.hash_of
        taken = []
        block = following[0]
        for _ in range(count):
            if hash_of[block] is not None:
                self._cache.evict(block)
            refs[block] = 1
            taken.append(block)
            block = following[block]
        following[0] = block
        self._previous[block] = 0
        self.free_count -= count
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """One more reference to each: a fork, or a prefix hit (which may take a block off the free list)."""
        refs, following, previous = self.refs, self._next, self._previous
        for block in blocks:
            if refs[block] == 0:
                if self._cache.hash_of[block] is None:
                    raise ValueError(f"block {block} is free and holds nothing that could be shared")
                before, after = previous[block], following[block]
                following[before] = after
                previous[after] = before
                self.free_count -= 1
            refs[block] += 1

    def release(self, blocks: list[int]) -> None:
        """One reference less to each, in reverse order: the end of a chain is then used up before its beginning."""
        refs, following, previous, hash_of = self.refs, self._next, self._previous, self._cache.hash_of
        for block in reversed(blocks):
            if refs[block] <= 0:
                raise ValueError(f"block {block} was released more often than it was taken")
            refs[block] -= 1
            if refs[block] > 0:
                continue
            if hash_of[block] is None:  # to the front: nothing is lost when it is used again
                before, after = 0, following[0]
            else:
                before, after = previous[0], 0
            following[before] = previous[after] = block
            previous[block], following[block] = before, after
            self.free_count += 1

    def check(self, tables: Iterable[list[int]]) -> None:
        """Asserts every invariant of the pool, given all tables that hold blocks of it."""
        held: Counter[int] = Counter()
        for table in tables:
            assert len(set(table)) == len(table), f"a table holds a block twice: {table}"
            held.update(table)
        assert held[0] == 0, "a table holds the null block"
        assert self.refs[0] == 0, "somebody refers to the null block"
        for block, count in enumerate(self.refs):
            assert count == held[block], f"block {block}: {count} references, {held[block]} tables"
        free = []
        before, block = 0, self._next[0]
        while block != 0:
            assert self._previous[block] == before, f"links around free block {block} disagree"
            assert self.refs[block] == 0, f"block {block} is free and referred to"
            free.append(block)
            assert len(free) <= self.usable, "the free list runs in a circle"
            before, block = block, self._next[block]
        assert self._previous[0] == before, "the free list has two ends"
        assert len(free) == self.free_count, f"{len(free)} blocks in the free list, {self.free_count} counted"
        assert len(free) + len(held) == self.usable, "free and used blocks do not add up"
        cached = [self._cache.hash_of[block] is not None for block in free]
        assert cached == sorted(cached), "a free block with cached contents would be used before one without"
