"""Memory without paging, for comparison: each sequence reserves one contiguous range for all it may ever hold.

Stands in for BlockTables in the real scheduler, so that only memory differs: `max` reserves the context, `pow2` the
answer rounded up to a power of two, `oracle` the very length that the answer will have, which no real system knows
(PagedAttention, SOSP 2023, section 6.1: "Orca (Max)", "(Pow2)", "(Oracle)"). Ranges come from a buddy allocator. Here
one sequence's tokens never move, nothing is shared, and who runs is never short of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf

from puna.errors import InputError
from puna.plan.buddy import BuddyAllocator
from puna.sched.block_pool import BlockPool
from puna.sched.block_tables import BlockTables
from puna.sched.config import SchedulerConfig
from puna.sched.prefix_cache import PrefixCache
from puna.sched.sequence import Sequence, Status
from puna.sched.step import Move

Reservation = Callable[[Sequence, int], int]  # (sequence, longest it may get) -> tokens

RESERVATIONS: dict[str, Reservation] = {
    "max": lambda _, longest: longest,
    "pow2": lambda sequence, longest: min(longest, sequence.prompt_len + _power_of_two(_answer_len(sequence))),
    "oracle": lambda sequence, _: sequence.max_total_len,
}


class BuddyPool(BlockPool):
    """A block pool whose blocks come in contiguous ranges and are given back as they came."""

    def __init__(self, num_blocks: int, cache: PrefixCache) -> None:
        super().__init__(num_blocks, cache)
        self.ranges = BuddyAllocator(self.usable)

    def allocate(self, count: int) -> list[int]:
        """`count` blocks side by side."""
        if not count:
            return []
        first = 1 + self.ranges.allocate(count)  # block 0 is the null block
        self.free_count = self.ranges.free_units
        taken = list(range(first, first + count))
        for block in taken:
            self.refs[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        if any(True for _ in blocks):
            raise ValueError("contiguous ranges have one owner each; nothing can be shared")

    def release(self, blocks: list[int]) -> None:
        if blocks:
            self.ranges.free(blocks[0] - 1)
            self.free_count = self.ranges.free_units
            for block in blocks:
                self.refs[block] = 0

    def check(self, tables: Iterable[list[int]]) -> None:
        held = sorted(block for table in tables for block in table)
        assert held == [block for block, count in enumerate(self.refs) if count], "blocks held twice, or by nobody"
        self.ranges.check()


class ReservedTables(BlockTables):
    """`config` has to be without a prefix cache. InputError where the pool cannot hold the longest reservation."""

    def __init__(self, config: SchedulerConfig, reservation: Reservation) -> None:
        if config.prefix_cache:
            raise InputError("reserved ranges share nothing; turn the prefix cache off", param="prefix_cache")
        super().__init__(config)
        self.pool: BuddyPool = BuddyPool(config.num_blocks, self.cache)
        self._reservation = reservation
        self._longest = config.max_model_len
        if self.blocks_for(self._longest) > self.pool.ranges.largest:
            raise InputError(
                f"a sequence of {self._longest} tokens fits into no contiguous range of a pool of {self.pool.usable} "
                f"blocks: the longest is {self.pool.ranges.largest} blocks; give the pool more (num_blocks), or "
                "shorten max_model_len",
                param="num_blocks",
            )

    def open(self, members: SequenceOf[Sequence], spare: int) -> list[Move] | None:
        (sequence,) = members  # nothing is forked here
        count = self.blocks_for(self._reservation(sequence, self._longest))
        if count + spare > self.pool.free_count or not self.pool.ranges.has_room(count):
            return None
        sequence.blocks = self.pool.allocate(count)
        sequence.computed_len = sequence.cached_len = 0
        return []

    def fork(self, parent: Sequence, child: Sequence) -> None:
        del parent, child
        raise ValueError("a contiguous range cannot be forked; ask for every sample by itself")

    def check(self, running: Iterable[Sequence], waiting: Iterable[Sequence]) -> None:
        tables = []
        for sequence in running:
            assert sequence.status is Status.RUNNING
            assert len(sequence.blocks) >= self.blocks_for(len(sequence.tokens)), "more tokens than were reserved"
            tables.append(sequence.blocks)
        assert not any(sequence.blocks for sequence in waiting), "a waiting sequence holds blocks"
        self.pool.check(tables)


def _answer_len(sequence: Sequence) -> int:
    return max(1, sequence.max_total_len - sequence.prompt_len)


def _power_of_two(tokens: int) -> int:
    return 1 << (tokens - 1).bit_length()
