"""What happens to a sequence's block table: it opens (with prefix hits), grows, splits from a fork, leaves and returns.

Knows block pool, prefix cache and tier, and what they mean for one sequence at a time. It does not know who else waits
or runs, nor budgets: the scheduler decides, this carries out. Tables only ever grow at the end, but for copy-on-write,
which replaces the last block. Moves are returned in the order in which they have to be executed.
"""

from __future__ import annotations

from collections.abc import Iterable

from puna.kernels.batch import MOVE_COPY, MOVE_IN, MOVE_OUT
from puna.sched.block_pool import BlockPool
from puna.sched.config import SchedulerConfig
from puna.sched.prefix_cache import PrefixCache, extend_hashes
from puna.sched.sequence import Sequence, Status
from puna.sched.step import Move, ScheduledRow
from puna.sched.tier import HostTier, Tier


class BlockTables:
    """`prefix_queries` and `prefix_hits` count tokens, when a table opens."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.cache = PrefixCache(config.num_blocks, config.block_size)
        self.pool = BlockPool(config.num_blocks, self.cache)
        self.tier: Tier = HostTier(config.tier_blocks)
        self.swapped: dict[int, list[int]] = {}  # sequence id -> tier slots, in the order of its table
        self.uncached_from: dict[int, int] = {}  # swapped back in: sequence id -> first block the cache was not told of
        self.prefix_queries = 0
        self.prefix_hits = 0
        self._caching = config.prefix_cache
        self._block_size = config.block_size

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._block_size)

    def cached_len_of(self, sequence: Sequence) -> int:
        """Tokens of a waiting sequence that it would find in the cache, were it admitted now."""
        return len(self._hits(sequence)) * self._block_size

    def hashes_to_come(self, rows: Iterable[ScheduledRow]) -> set[bytes]:
        """Of the blocks that prefilling rows fill, in this step or in later ones, with tokens known today."""
        found: set[bytes] = set()
        for row in rows:
            if self._caching and not (row.count == 1 and row.completes):
                end = len(row.sequence.tokens) // self._block_size
                extend_hashes(row.sequence, end, self._block_size)
                found.update(row.sequence.block_hashes[row.start // self._block_size : end])
        return found

    def next_hash(self, sequence: Sequence) -> bytes | None:
        """Of the first block of a waiting sequence that the cache does not hold; None where it would not look."""
        if sequence.status is not Status.WAITING:
            return None
        missing = len(self._hits(sequence))
        looked_for = sequence.block_hashes[: (len(sequence.tokens) - 1) // self._block_size]
        return looked_for[missing] if sequence.reuse_prefix and missing < len(looked_for) else None

    def open(self, sequence: Sequence, spare: int) -> list[Move] | None:
        """Gives a waiting sequence blocks for all its known tokens, if `spare` free blocks are left then; else None.

        What the cache holds is shared. Of a swapped-out sequence, blocks that the cache has lost come back from the
        tier; the moves say how.
        """
        hits = self._hits(sequence)
        fresh = self.blocks_for(len(sequence.tokens)) - len(hits)
        refs = self.pool.refs
        revived = sum(refs[block] == 0 for block in hits)
        if fresh + revived + spare > self.pool.free_count:
            return None
        self.pool.share(hits)  # first: they must not be evicted by the next line
        sequence.blocks = hits + self.pool.allocate(fresh)
        slots = self.swapped.pop(sequence.sequence_id, None)
        if slots is None:
            sequence.computed_len = sequence.cached_len = len(hits) * self._block_size
            if self._caching and sequence.reuse_prefix:
                self.prefix_queries += len(sequence.tokens)
                self.prefix_hits += sequence.cached_len
            return []
        self.tier.release(slots)
        self.uncached_from[sequence.sequence_id] = len(hits)
        return [(MOVE_IN, slots[i], sequence.blocks[i]) for i in range(len(hits), len(slots))]

    def blocks_missing(self, sequence: Sequence, end: int) -> int:
        """Free blocks it takes to write positions computed_len .. end-1."""
        return max(self.blocks_for(end) - len(sequence.blocks), 0) + self._writes_into_shared(sequence)

    def grow(self, sequence: Sequence, end: int) -> Move | None:
        """Makes positions computed_len .. end-1 writable; `blocks_missing` of them must be free.

        A last block that others hold too is left to them: the returned move copies it.
        """
        copy = None
        if self._writes_into_shared(sequence):
            index = sequence.computed_len // self._block_size
            shared, (own,) = sequence.blocks[index], self.pool.allocate(1)
            sequence.blocks[index] = own
            self.pool.release([shared])
            copy = (MOVE_COPY, shared, own)
        sequence.blocks += self.pool.allocate(max(self.blocks_for(end) - len(sequence.blocks), 0))
        return copy

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """The child refers to the parent's computed blocks. Cost: one count a block."""
        child.blocks = parent.blocks[: self.blocks_for(parent.computed_len)]
        self.pool.share(child.blocks)
        child.block_hashes = parent.block_hashes.copy()
        child.computed_len, child.cached_len = parent.computed_len, parent.cached_len

    def publish(self, sequence: Sequence, start: int) -> None:
        """Tokens from `start` to computed_len have just been computed: blocks that they filled go into the cache."""
        first, end = start // self._block_size, sequence.computed_len // self._block_size
        if self.uncached_from:
            first = self.uncached_from.pop(sequence.sequence_id, first)
        if self._caching and end > first:
            self.cache.insert(sequence, first, end)

    def swap_out(self, sequence: Sequence) -> list[Move] | None:
        """Moves the computed blocks to the tier and closes the table; None, and nothing done, if they find no room.

        Blocks that others share are copied as well: those others may be gone before this sequence returns.
        """
        used = self.blocks_for(sequence.computed_len)
        slots = self.tier.reserve(used) if used else None
        if slots is None:
            return None
        moves = [(MOVE_OUT, block, slot) for block, slot in zip(sequence.blocks, slots, strict=False)]
        self.close(sequence)
        self.swapped[sequence.sequence_id] = slots
        return moves

    def close(self, sequence: Sequence) -> None:
        """Gives back all that a sequence holds, in the pool or in the tier; what is cached stays findable."""
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        self.tier.release(self.swapped.pop(sequence.sequence_id, []))
        self.uncached_from.pop(sequence.sequence_id, None)

    def _hits(self, sequence: Sequence) -> list[int]:
        """Blocks of the longest cached prefix. One token at least is left to compute: its logits are wanted."""
        if not self._caching or not sequence.reuse_prefix:
            return []
        swapped = sequence.sequence_id in self.swapped
        most = sequence.computed_len if swapped else len(sequence.tokens) - 1
        return self.cache.lookup(sequence, most // self._block_size)

    def _writes_into_shared(self, sequence: Sequence) -> bool:
        index, offset = divmod(sequence.computed_len, self._block_size)
        return offset > 0 and self.pool.refs[sequence.blocks[index]] > 1

    def check(self, running: Iterable[Sequence], waiting: Iterable[Sequence]) -> None:
        """Asserts that pool, cache, tier and the tables of all living sequences agree."""
        tables = []
        for sequence in running:
            assert sequence.status is Status.RUNNING, f"sequence {sequence.sequence_id} runs, marked {sequence.status}"
            assert 0 <= sequence.computed_len <= len(sequence.tokens) <= sequence.max_total_len
            low, high = self.blocks_for(sequence.computed_len), self.blocks_for(len(sequence.tokens))
            assert low <= len(sequence.blocks) <= high, f"{len(sequence.blocks)} blocks, {low} to {high} expected"
            tables.append(sequence.blocks)
        slots: list[int] = []
        for sequence in waiting:
            held = self.swapped.get(sequence.sequence_id, [])
            assert (sequence.status is Status.SWAPPED) == bool(held), f"{sequence.status}, {len(held)} tier slots"
            assert not sequence.blocks, f"sequence {sequence.sequence_id} waits and holds blocks"
            assert len(held) == self.blocks_for(sequence.computed_len), "the tier holds more or less than was computed"
            slots += held
        assert len(set(slots)) == len(slots) == self.tier.capacity - self.tier.free_count, "tier slots do not add up"
        self.pool.check(tables)
        self.cache.check()
