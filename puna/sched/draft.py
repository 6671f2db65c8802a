"""A step while it is being put together: what was handed out so far, and how to take it back.

Knows rows, moves and the rest of the budget; decides nothing. Where history costs (`history_tokens`), it also counts
work: a token behind h others is `history_tokens` + h units, and a step has those of a whole budget without history.
Chunks of prompts are cut to the work that is left, so that a step behind a long history takes no longer than the first.
"""

from __future__ import annotations

from math import isqrt

from puna.sched.sequence import Sequence
from puna.sched.step import Move, ScheduledRow

WHOLE_ROWS = 256  # tokens that pass the weights together: a step of whole ones is the quickest a token
LEAST_CHUNK = 16  # tokens of a prompt that a step always has room for: else decodes could keep it from getting on


class Draft:
    """`cursor` is the position in the list of running sequences that is being served; `budget` is what is left of
    `whole_budget`."""

    __slots__ = (
        "_copies",
        "_history_tokens",
        "_work",
        "budget",
        "cursor",
        "impossible",
        "moves",
        "out_of_memory",
        "preempted",
        "rows",
        "whole_budget",
    )

    def __init__(self, budget: int, history_tokens: int = 0) -> None:
        self.whole_budget = self.budget = budget
        self._history_tokens = history_tokens
        self._work = budget * history_tokens
        self.cursor = 0
        self.rows: list[ScheduledRow] = []
        self.moves: list[Move] = []
        self.preempted: list[Sequence] = []
        self.impossible: list[Sequence] = []
        self.out_of_memory = False
        self._copies: dict[int, Move] = {}  # sequence id -> its copy-on-write of this step

    def add_row(self, sequence: Sequence, start: int, count: int, completes: bool) -> None:
        self.rows.append(ScheduledRow(sequence, start, count, completes))
        self.budget -= count
        if self._history_tokens:
            self._work -= self._work_of(start, count)

    def chunk(self, start: int, wanted: int, block_size: int) -> int:
        """How many of `wanted` tokens from `start` on the work that is left allows: up to the end of a block where not
        all, and no fewer than LEAST_CHUNK: the first prompt of a step gets so many, others none. One token always."""
        if not self._history_tokens or wanted == 1 or self._work_of(start, wanted) <= self._work:
            return wanted
        doubled = 2 * (self._history_tokens + start) - 1  # count * (doubled + count) <= 2 * work
        most = (isqrt(doubled * doubled + 8 * max(0, self._work)) - doubled) // 2
        if most < LEAST_CHUNK:
            return 0 if any(row.count > 1 for row in self.rows) else min(wanted, LEAST_CHUNK)
        if most >= 2 * WHOLE_ROWS:
            return even_part(wanted, most)
        whole = (start + most) // block_size * block_size - start
        return min(wanted, whole if whole >= LEAST_CHUNK else most)

    def _work_of(self, start: int, count: int) -> int:
        return count * (self._history_tokens + start) + count * (count - 1) // 2

    def add_copy(self, sequence: Sequence, move: Move) -> None:
        self.moves.append(move)
        self._copies[sequence.sequence_id] = move

    def take_back_row(self, sequence: Sequence) -> None:
        """A victim that was served already gives its tokens back to the budget."""
        for index, row in enumerate(self.rows):
            if row.sequence is sequence:
                self.budget += row.count
                self._work += self._work_of(row.start, row.count) if self._history_tokens else 0
                del self.rows[index]
                return

    def cancel_copy(self, sequence: Sequence) -> None:
        """Its target is free again and may go to somebody else. Found by identity: an equal move may belong to an
        earlier holder of that block, who went on to the tier and needs it."""
        move = self._copies.pop(sequence.sequence_id, None)
        if move is not None:
            self.moves = [other for other in self.moves if other is not move]


def even_part(wanted: int, most: int) -> int:
    """The first of as few equal parts as hold `wanted`, in whole WHOLE_ROWS. An eighth more than `most` will do."""
    parts = -(-wanted * 8 // (most * 9))
    part = -(-wanted // (parts * WHOLE_ROWS)) * WHOLE_ROWS
    return min(wanted, part if 8 * part <= 9 * most else most // WHOLE_ROWS * WHOLE_ROWS)
