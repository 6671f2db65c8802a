"""A step while it is being put together: what was handed out so far, and how to take it back.

Knows rows, moves and the rest of the budget; decides nothing.
"""

from __future__ import annotations

from puna.sched.sequence import Sequence
from puna.sched.step import Move, ScheduledRow


class Draft:
    """`cursor` is the position in the list of running sequences that is being served."""

    __slots__ = ("_copies", "budget", "cursor", "impossible", "moves", "out_of_memory", "preempted", "rows")

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.cursor = 0
        self.rows: list[ScheduledRow] = []
        self.moves: list[Move] = []
        self.preempted: list[Sequence] = []
        self.impossible: list[Sequence] = []
        self.out_of_memory = False
        self._copies: dict[int, Move] = {}  # sequence id -> its copy-on-write of this step

    def add_copy(self, sequence: Sequence, move: Move) -> None:
        self.moves.append(move)
        self._copies[sequence.sequence_id] = move

    def take_back_row(self, sequence: Sequence) -> None:
        """A victim that was served already gives its tokens back to the budget."""
        for index, row in enumerate(self.rows):
            if row.sequence is sequence:
                self.budget += row.count
                del self.rows[index]
                return

    def cancel_copy(self, sequence: Sequence) -> None:
        """Its target is free again and may go to somebody else. Found by identity: an equal move may belong to an
        earlier holder of that block, who went on to the tier and needs it."""
        move = self._copies.pop(sequence.sequence_id, None)
        if move is not None:
            self.moves = [other for other in self.moves if other is not move]
