"""A KV pool that remembers what was written where, so that tests can tell whether a block table tells the truth.

Every slot holds the chain of everything its token was computed from: keys and values of position p depend on all
tokens up to p and on the sequence's keys and salt, and so does the chain. Executes steps as a backend would: the moves
in order, then the rows.
"""

from __future__ import annotations

from array import array

from puna.kernels.batch import MOVE_COPY, MOVE_IN, MOVE_OUT
from puna.sched.config import SchedulerConfig
from puna.sched.sequence import Sequence
from puna.sched.step import ScheduledStep

Content = tuple[int, int, int] | None  # token, position, chain


class FakeKV:
    def __init__(self, config: SchedulerConfig) -> None:
        self.block_size = config.block_size
        self.pool: list[list[Content]] = [[None] * config.block_size for _ in range(config.num_blocks)]
        self.tier: list[list[Content]] = [[None] * config.block_size for _ in range(config.tier_blocks)]
        self._chains: dict[int, list[int]] = {}

    def run(self, step: ScheduledStep) -> None:
        """Executes a step and checks that every row sees its own sequence's tokens, all of them."""
        for kind, src, dst in step.moves:
            assert not (kind in (MOVE_COPY, MOVE_IN) and dst == 0), "a move into the null block"
            if kind == MOVE_COPY:
                self.pool[dst] = self.pool[src].copy()
            elif kind == MOVE_OUT:
                self.tier[dst] = self.pool[src].copy()
            else:
                assert kind == MOVE_IN
                self.pool[dst] = self.tier[src].copy()
        written: set[tuple[int, int]] = set()
        for row in step.rows:
            chain = self._chain(row.sequence)
            for position in range(row.start, row.start + row.count):
                block, offset = row.sequence.blocks[position // self.block_size], position % self.block_size
                assert block != 0, "a token written into the null block"
                assert (block, offset) not in written, "two rows write into one slot"
                written.add((block, offset))
                self.pool[block][offset] = (row.sequence.tokens[position], position, chain[position])
        for row in step.rows:
            self.check_context(row.sequence, row.start + row.count)

    def check_context(self, sequence: Sequence, length: int) -> None:
        chain = self._chain(sequence)
        for position in range(length):
            found = self.pool[sequence.blocks[position // self.block_size]][position % self.block_size]
            wanted = (sequence.tokens[position], position, chain[position])
            assert found == wanted, f"sequence {sequence.sequence_id}, position {position}: holds {found}, not {wanted}"

    def forget(self, sequence: Sequence) -> None:
        """Its tokens are others than they were."""
        self._chains.pop(sequence.sequence_id, None)

    def _chain(self, sequence: Sequence) -> list[int]:
        chain = self._chains.setdefault(sequence.sequence_id, [])
        parent = chain[-1] if chain else hash((sequence.extra_keys, sequence.cache_salt))
        for token in sequence.tokens[len(chain) :]:
            parent = hash((parent, token))
            chain.append(parent)
        return chain


def make_sequence(sequence_id: int, tokens: list[int], max_total_len: int, **fields: object) -> Sequence:
    return Sequence(sequence_id, array("i", tokens), len(tokens), max_total_len, **fields)  # type: ignore[arg-type]
