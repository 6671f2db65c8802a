"""What happens to a sequence's block table: it opens (with prefix hits), grows, splits from a fork, leaves and returns.

Knows block pool, prefix cache and tier, and what they mean for a sequence, or for those that come and go together. It
does not know who else waits or runs, nor budgets: the scheduler decides, this carries out. Tables only ever grow at the
end, but for copy-on-write, which replaces the last block. Moves are returned in the order in which they have to be
executed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from typing import TypeAlias

from puna.kernels.batch import MOVE_COPY, MOVE_IN, MOVE_OUT
from puna.sched.block_pool import BlockPool
from puna.sched.config import SchedulerConfig
from puna.sched.prefix_cache import PrefixCache, extend_hashes
from puna.sched.sequence import Sequence, Status
from puna.sched.step import Move, ScheduledRow
from puna.sched.tier import HostTier, Tier

# Of a block to come: its tier slot (with the sequence, where it is to be its own), or the hash of its tokens.
Key: TypeAlias = int | tuple[int, int] | bytes


class BlockTables:
    """`prefix_queries` and `prefix_hits` count tokens, when a table opens."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.cache = PrefixCache(config.num_blocks, config.block_size)
        self.pool = BlockPool(config.num_blocks, self.cache)
        self.tier: Tier = HostTier(config.tier_blocks)
        self.swapped: dict[int, list[int]] = {}  # sequence id -> tier slots, in the order of its table
        self.unwritten: set[int] = set()  # blocks that members of groups await from others of theirs
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

    def open(self, members: SequenceOf[Sequence], spare: int) -> list[Move] | None:
        """Gives waiting sequences, one or a whole group, blocks for all their known tokens, if `spare` free blocks are
        left then; else None.

        What the cache holds is shared. Of swapped-out sequences, blocks that the cache has lost come back from the
        tier; the moves say how. What several of them begin with gets blocks once: the first computes them, and the
        others await that.
        """
        hits = [self._hits(sequence) for sequence in members]
        keys = [
            self._keys(each, len(found), shared=len(members) > 1) for each, found in zip(members, hits, strict=True)
        ]
        named = [key for each in keys for key in each if key is not None]
        fresh = len(set(named)) + sum(map(len, keys)) - len(named)
        revived = sum(self.pool.refs[block] == 0 for block in {block for found in hits for block in found})
        if fresh + revived + spare > self.pool.free_count:
            return None
        for found in hits:
            self.pool.share(found)  # first: they must not be evicted by what follows
        moves: list[Move] = []
        placed: dict[Key, int] = {}
        for sequence, found, wanted in zip(members, hits, keys, strict=True):
            sequence.blocks = found + self._place(sequence, len(found), wanted, placed, moves)
            if sequence.sequence_id in self.swapped:
                self.tier.release(self.swapped.pop(sequence.sequence_id))
                self.uncached_from[sequence.sequence_id] = len(found)
                continue
            sequence.computed_len = sequence.cached_len = len(found) * self._block_size
            if self._caching and sequence.reuse_prefix:
                self.prefix_queries += len(sequence.tokens)
                self.prefix_hits += sequence.cached_len
        return moves

    def _keys(self, sequence: Sequence, first: int, *, shared: bool) -> list[Key | None]:
        """What goes into its blocks from `first` on: a tier slot's contents, tokens that others may begin with too (by
        their hash), or something of its own (None): the last known token is computed by each for itself."""
        end = self.blocks_for(len(sequence.tokens))
        slots = self.swapped.get(sequence.sequence_id)
        if slots is not None:
            come = list[Key | None](slots[first:])
            if come and sequence.computed_len % self._block_size:
                come[-1] = (slots[-1], sequence.sequence_id)  # it is written on at once
            return [*come, *[None] * (end - max(first, len(slots)))]
        common = (len(sequence.tokens) - 1) // self._block_size if shared else first
        extend_hashes(sequence, common, self._block_size)
        return [*sequence.block_hashes[first:common], *[None] * (end - max(first, common))]

    def _place(
        self, sequence: Sequence, first: int, keys: list[Key | None], placed: dict[Key, int], moves: list[Move]
    ) -> list[int]:
        """A block for each key, that of an earlier member where one has the same."""
        blocks: list[int] = []
        sequence.awaits = 0
        for index, key in enumerate(keys, first):
            if key is None:
                return blocks + self.pool.allocate(len(keys) - len(blocks))
            block = placed.get(key)
            if block is None:
                (block,) = self.pool.allocate(1)
                placed[key] = block
                if not isinstance(key, bytes):
                    moves.append((MOVE_IN, key if isinstance(key, int) else key[0], block))
            else:
                self.pool.share([block])
                if isinstance(key, bytes):
                    self.unwritten.add(block)
                    sequence.awaits = index + 1
            blocks.append(block)
        return blocks

    def caught_up(self, sequence: Sequence) -> bool:
        """Whether what a sequence awaits is computed; then it goes on behind that."""
        first = sequence.computed_len // self._block_size
        if not self.unwritten.isdisjoint(sequence.blocks[first : sequence.awaits]):
            return False
        sequence.computed_len = sequence.awaits * self._block_size
        sequence.awaits = 0
        return True

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
        """The child refers to the parent's computed blocks, and no longer to what it had. Cost: one count a block."""
        computed_len, begun = parent.computed_len, parent.computed_len % self._block_size
        if begun and parent.blocks[computed_len // self._block_size] in self.unwritten:
            computed_len -= begun  # it is written on for those that await it
        blocks = parent.blocks[: self.blocks_for(computed_len)]
        self.pool.share(blocks)  # first: what both hold stays
        self.close(child)
        child.blocks = blocks
        child.block_hashes = parent.block_hashes.copy()
        child.computed_len, child.cached_len = computed_len, parent.cached_len

    def publish(self, sequence: Sequence, start: int) -> None:
        """Tokens from `start` to computed_len have just been computed: blocks that they filled go into the cache."""
        first, end = start // self._block_size, sequence.computed_len // self._block_size
        if self.unwritten:
            self.unwritten.difference_update(sequence.blocks[first:end])
        if self.uncached_from:
            first = self.uncached_from.pop(sequence.sequence_id, first)
        if self._caching and end > first:
            self.cache.insert(sequence, first, end)

    def swap_out(self, members: SequenceOf[Sequence]) -> list[Move] | None:
        """Moves the computed blocks of sequences to the tier and closes their tables; None, and nothing done, if they
        find no room, or one of them has nothing computed, or not all that is shared.

        Blocks that they share take one slot. Blocks that others share are copied as well: those others may be gone
        before these return.
        """
        if not all(sequence.computed_len and not sequence.awaits for sequence in members):
            return None
        used = [sequence.blocks[: self.blocks_for(sequence.computed_len)] for sequence in members]
        blocks = list(dict.fromkeys(block for each in used for block in each))
        slots = self.tier.reserve(len(blocks))
        if slots is None:
            return None
        slot_of, held = dict(zip(blocks, slots, strict=True)), set[int]()
        for sequence, each in zip(members, used, strict=True):
            self.close(sequence)
            own = self.swapped[sequence.sequence_id] = [slot_of[block] for block in each]
            self.tier.share([slot for slot in own if slot in held])
            held.update(own)
        return [(MOVE_OUT, block, slot) for block, slot in slot_of.items()]

    def close(self, sequence: Sequence) -> None:
        """Gives back all that a sequence holds, in the pool or in the tier; what is cached stays findable."""
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.awaits = 0
        self.tier.release(self.swapped.pop(sequence.sequence_id, []))
        self.uncached_from.pop(sequence.sequence_id, None)
        if self.unwritten:
            self.unwritten = {block for block in self.unwritten if self.pool.refs[block]}

    def _hits(self, sequence: Sequence) -> list[int]:
        """Blocks of the longest cached prefix. One token at least is left to compute: its logits are wanted."""
        if not self._caching or not sequence.reuse_prefix:
            return []
        swapped = sequence.sequence_id in self.swapped
        most = sequence.computed_len if swapped else len(sequence.tokens) - 1
        return self.cache.lookup(sequence, most // self._block_size)

    def _writes_into_shared(self, sequence: Sequence) -> bool:
        index, offset = divmod(sequence.computed_len, self._block_size)
        if offset == 0 or self.pool.refs[sequence.blocks[index]] == 1:
            return False
        return sequence.blocks[index] not in self.unwritten  # what others await is written for them as well

    def check(self, running: Iterable[Sequence], waiting: Iterable[Sequence]) -> None:
        """Asserts that pool, cache, tier and the tables of all living sequences agree."""
        tables = []
        for sequence in running:
            assert sequence.status is Status.RUNNING, f"sequence {sequence.sequence_id} runs, marked {sequence.status}"
            assert 0 <= sequence.computed_len <= len(sequence.tokens) <= sequence.max_total_len
            low, high = self.blocks_for(sequence.computed_len), self.blocks_for(len(sequence.tokens))
            assert low <= len(sequence.blocks) <= high, f"{len(sequence.blocks)} blocks, {low} to {high} expected"
            assert sequence.awaits * self._block_size < len(sequence.tokens), "nothing left to compute itself"
            tables.append(sequence.blocks)
        slots: list[int] = []
        for sequence in waiting:
            held = self.swapped.get(sequence.sequence_id, [])
            assert (sequence.status is Status.SWAPPED) == bool(held), f"{sequence.status}, {len(held)} tier slots"
            assert not sequence.blocks, f"sequence {sequence.sequence_id} waits and holds blocks"
            assert len(held) == self.blocks_for(sequence.computed_len), "the tier holds more or less than was computed"
            slots += held
        assert len(set(slots)) == self.tier.capacity - self.tier.free_count, "tier slots do not add up"
        assert all(self.tier.holders(slot) == count for slot, count in Counter(slots).items()), "holders of a slot"
        self.pool.check(tables)
        self.cache.check()
