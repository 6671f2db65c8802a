"""What the scheduler hands out: one step's rows and block moves.

Plain values. A step is a plan; nothing in it changes when sequences go on.
"""

from __future__ import annotations

import msgspec

from puna.sched.sequence import Sequence

Move = tuple[int, int, int]  # (kind, src, dst), kinds are MOVE_* of puna.kernels.batch


class ScheduledRow(msgspec.Struct, frozen=True, gc=False):
    """Tokens start .. start+count-1 of `sequence` are computed. `completes`: they are the last known ones, so a token
    can be drawn from the last of them. (A msgspec struct because a step makes one a sequence: a tenth of the time.)"""

    sequence: Sequence
    start: int
    count: int
    completes: bool


class ScheduledStep(msgspec.Struct, frozen=True):
    """One step. `moves` are to be executed strictly in the order given, before the rows, and also when there are none:
    a block that one move reads may be what a later one writes.

    preempted   sequences that lost their blocks in this step; they wait again
    shed        waiting sequences that the policy gave up on; they have ended
    impossible  sequences that the whole pool cannot hold; they have ended. `Scheduler.add` refuses such sequences, so
                this stays empty unless one was let grow behind the scheduler's back
    tokens      sum of the rows' counts
    repeats     the rows are those of the step before, in that order, each one token on, and one token each in both
    grown       of a step that repeats: numbers of the rows whose block table got one more block
    """

    rows: tuple[ScheduledRow, ...]
    moves: tuple[Move, ...]
    preempted: tuple[Sequence, ...]
    tokens: int
    shed: tuple[Sequence, ...] = ()
    impossible: tuple[Sequence, ...] = ()
    repeats: bool = False
    grown: tuple[int, ...] = ()
