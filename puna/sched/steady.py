"""The commonest step: everybody decodes, and nobody came or went since the last one.

Then the rows are those of the step before, one token on, and only blocks for new tokens may be missing. Knows running
sequences and the block pool; the scheduler knows when to ask, and plans from scratch where this gives up.
"""

from __future__ import annotations

from puna.sched.block_pool import BlockPool
from puna.sched.sequence import Sequence
from puna.sched.step import ScheduledRow, ScheduledStep


def repeat_rows(running: list[Sequence], pool: BlockPool, block_size: int) -> ScheduledStep | None:
    """One row of one token a sequence, with a block more where one begins. None, and nothing done, where a sequence did
    not get exactly one token, or the pool has too few free blocks.

    The last blocks of all tables have to be their sequences' own: no fork since each of them was written to.
    """
    rows, grown = [], []
    for number, sequence in enumerate(running):
        start = sequence.computed_len
        if len(sequence.tokens) != start + 1:
            return None
        if start == len(sequence.blocks) * block_size:
            grown.append(number)
        rows.append(ScheduledRow(sequence, start, 1, True))
    if len(grown) > pool.free_count or not rows:
        return None
    for number, block in zip(grown, pool.allocate(len(grown)), strict=True):
        running[number].blocks.append(block)
    return ScheduledStep(rows=tuple(rows), moves=(), preempted=(), tokens=len(rows), repeats=True, grown=tuple(grown))
