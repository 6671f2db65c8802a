"""Sequences give their blocks back and return to the front of the queue, with all forks of theirs: all or nothing.

Swapped out where the tier has room, to be recomputed elsewhere. Knows those that run, their tables and the step that is
being put together; whose turn it is to give way was decided before.
"""

from __future__ import annotations

from puna.sched.block_tables import BlockTables
from puna.sched.draft import Draft
from puna.sched.group import together
from puna.sched.population import Population
from puna.sched.sequence import Sequence, Status


def preempt(victim: Sequence, draft: Draft, population: Population, tables: BlockTables) -> int:
    """Takes the blocks of a running sequence and its forks, and what this step had given to them. Returns how many
    sequences gave way."""
    members = together(victim)
    served = [member for member in members if population.running.index(member) < draft.cursor]
    for member in served:
        draft.cursor -= 1
        draft.take_back_row(member)
    moves = tables.swap_out(members)
    if moves is None:
        for member in members:
            draft.cancel_copy(member)
        start_over(members, population, tables)
    else:
        draft.moves += moves  # behind their own copies-on-write, if there are any: the copy is what they read
        for member in reversed(members):
            population.return_to_line(member, Status.SWAPPED)
    draft.preempted += members
    for member in members:
        member.preemptions += 1
    return len(members)


def start_over(members: list[Sequence], population: Population, tables: BlockTables) -> None:
    """From running to the front of the queue, in their order, with nothing computed."""
    for member in reversed(members):
        tables.close(member)
        member.computed_len = 0
        population.return_to_line(member, Status.WAITING)
