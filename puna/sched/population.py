"""Who is alive: sequences that run, in the order they are served, and sequences in line, and what both take up.

Counts seats of those that run and tokens of those that wait, and keeps each sequence's status with the list it is in.
Knows nothing of blocks, budgets or policies: who comes and goes is the scheduler's business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from puna.sched.sequence import Sequence, Status


class Population:
    """`running` and `waiting` (WAITING and SWAPPED, first in line first) are for reading; the methods change them."""

    __slots__ = ("_alive", "running", "seats_taken", "waiting", "waiting_tokens")

    def __init__(self) -> None:
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.seats_taken = 0
        self.waiting_tokens = 0
        self._alive: dict[int, Sequence] = {}

    def __contains__(self, sequence: Sequence) -> bool:
        return self._alive.get(sequence.sequence_id) is sequence

    def __getitem__(self, sequence_id: int) -> Sequence:
        return self._alive[sequence_id]

    def knows(self, sequence_id: int) -> bool:
        return sequence_id in self._alive

    def queue(self, sequence: Sequence) -> None:
        """A new sequence, to the end of the line."""
        self._alive[sequence.sequence_id] = sequence
        self.waiting.append(sequence)
        self.waiting_tokens += len(sequence.tokens)

    def join(self, child: Sequence, parent: Sequence, behind: Sequence) -> None:
        """A new sequence that runs at once, on one of its parent's seats if that has more than one, else on its own.
        It is served behind one that runs."""
        if parent.seats > 1:
            parent.seats -= 1
        else:
            self.seats_taken += 1
        child.status = Status.RUNNING
        self._alive[child.sequence_id] = child
        self.running.insert(self.running.index(behind) + 1, child)

    def run(self, sequence: Sequence) -> None:
        """From the line to those that run; `leave_line` takes it out of the line, when nobody walks along it."""
        sequence.status = Status.RUNNING
        self.running.append(sequence)
        self.seats_taken += sequence.seats

    def leave_line(self, admitted: Iterable[Sequence]) -> None:
        for sequence in admitted:
            self.waiting_tokens -= len(sequence.tokens)
            self.waiting.remove(sequence)

    def return_to_line(self, sequence: Sequence, status: Status) -> None:
        """From those that run to the front of the line, as WAITING or SWAPPED."""
        self.running.remove(sequence)
        self.seats_taken -= sequence.seats
        sequence.status = status
        self.waiting.appendleft(sequence)
        self.waiting_tokens += len(sequence.tokens)

    def note_token(self, sequence: Sequence) -> None:
        """A sequence that lives is one token longer."""
        if sequence.status is not Status.RUNNING:
            self.waiting_tokens += 1

    def remove(self, sequence: Sequence) -> None:
        """A sequence ends, wherever it is."""
        del self._alive[sequence.sequence_id]
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            self.seats_taken -= sequence.seats
        else:
            self.waiting.remove(sequence)
            self.waiting_tokens -= len(sequence.tokens)
        sequence.status = Status.FINISHED

    def check(self, max_seqs: int) -> None:
        everyone = [*self.running, *self.waiting]
        assert {id(s) for s in everyone} == {id(s) for s in self._alive.values()}, "alive, but neither runs nor waits"
        assert self.seats_taken == sum(s.seats for s in self.running) <= max_seqs
        assert self.waiting_tokens == sum(len(s.tokens) for s in self.waiting)
        for group in {id(s.group): s.group for s in everyone if s.group is not None}.values():
            runs = {s.status is Status.RUNNING for s in group.members}
            assert len(runs) == 1, "a part of a group runs, another waits"
            assert all(s in self and s.group is group for s in group.members), "a group has members that have ended"
        assert all(s.group is None or s in s.group.members for s in everyone)
