"""Which blocks hold which tokens: a map from the hash of a full block to the block.

The hash of block i covers everything before it: SHA-256 over (hash of block i-1, the tokens, the sequence's extra
keys), so equal hashes mean equal prefixes and a lookup is a walk along the chain. Keys and salts keep chains apart.
It knows nothing of reference counts or of the free list: the block pool says when a block is lost (`evict`).
"""

from __future__ import annotations

import hashlib

from puna.sched.sequence import Sequence

FIRST_PARENT = hashlib.sha256(b"puna prefix cache, chain version 1").digest()
_TOKEN_BYTES = 4


class PrefixCache:
    """`hash_of[block]` is the hash under which a block is found, or None. Of blocks with equal contents the first one
    is found; the others are ordinary blocks."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._block_size = block_size
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._block_of)

    def lookup(self, sequence: Sequence, max_blocks: int) -> list[int]:
        """Blocks of the longest cached chain that `sequence` begins with, at most `max_blocks` (all of them full)."""
        extend_hashes(sequence, max_blocks, self._block_size)
        hits = []
        find = self._block_of.get
        for block_hash in sequence.block_hashes[:max_blocks]:
            block = find(block_hash)
            if block is None:
                break
            hits.append(block)
        return hits

    def insert(self, sequence: Sequence, first: int, end: int) -> None:
        """Makes logical blocks first .. end-1 of `sequence` findable. They are full and computed."""
        extend_hashes(sequence, end, self._block_size)
        for index in range(first, end):
            block_hash, block = sequence.block_hashes[index], sequence.blocks[index]
            if block_hash not in self._block_of and self.hash_of[block] is None:
                self._block_of[block_hash] = block
                self.hash_of[block] = block_hash

    def evict(self, block: int) -> None:
        """Forgets a block whose memory is about to be used for something else. The only way out of the cache."""
        block_hash = self.hash_of[block]
        if block_hash is not None:
            self.hash_of[block] = None
            del self._block_of[block_hash]
            self.evictions += 1

    def check(self) -> None:
        """Asserts that map and marks agree."""
        for block_hash, block in self._block_of.items():
            assert self.hash_of[block] == block_hash, f"block {block} is found under a hash that is not its own"
        marked = sum(block_hash is not None for block_hash in self.hash_of)
        assert marked == len(self._block_of), f"{marked} blocks carry a hash, {len(self._block_of)} can be found"


def extend_hashes(sequence: Sequence, blocks: int, block_size: int) -> None:
    """Computes the hashes of the first `blocks` blocks that `sequence` does not carry yet.

    Tokens are only ever appended, so each hash is computed once in a sequence's life.
    """
    hashes = sequence.block_hashes
    known = len(hashes)
    if known >= blocks:
        return
    stride = block_size * _TOKEN_BYTES
    data = sequence.tokens[known * block_size : blocks * block_size].tobytes()
    assert len(data) == (blocks - known) * stride, "only full blocks have a hash"
    every_block = b"".join(_tagged(b"key", name, value) for name, value in sequence.extra_keys)
    parent = hashes[-1] if hashes else FIRST_PARENT
    for offset in range(0, len(data), stride):
        salt = b"" if hashes or not sequence.cache_salt else _tagged(b"salt", sequence.cache_salt)
        parent = hashlib.sha256(parent + data[offset : offset + stride] + every_block + salt).digest()
        hashes.append(parent)


def _tagged(tag: bytes, *texts: str) -> bytes:
    """Bytes that no other tag and texts give: every part is preceded by its length."""
    parts = [tag, *(text.encode("utf-8", "surrogatepass") for text in texts)]
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)
