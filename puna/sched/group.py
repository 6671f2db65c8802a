"""Sequences that were forked from one: they are admitted, run and give way together.

They share blocks, so that pushing one of them out frees little, and who draws beams cannot get on with a part of them.
Knows who belongs together and how many blocks they may come to; tables, seats and queues are others' business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from puna.sched.sequence import Sequence


@dataclass(eq=False, slots=True)
class Group:
    """`members` are those that live, in the order in which they are served: all of them run, or all of them wait.
    `common_len`: tokens that all of them begin with and share but for the last, which may be computed by each."""

    members: list[Sequence]
    common_len: int

    @classmethod
    def join(cls, parent: Sequence, child: Sequence) -> Group:
        """The parent's group, or a new one, with the child in it."""
        group = parent.group or cls([parent], 0)
        group.common_len = common_with_fork(parent)
        group.members.append(child)
        parent.group = child.group = group
        return group


def together(sequence: Sequence) -> list[Sequence]:
    """A sequence and those that give way with it."""
    return [sequence] if sequence.group is None else list(sequence.group.members)


def common_with_fork(parent: Sequence) -> int:
    """`common_len` of its group once it is forked: a fork shares what is computed."""
    known = len(parent.tokens) if parent.group is None else parent.group.common_len
    return min(known, parent.computed_len + 1)


def most_blocks(sequence: Sequence, block_size: int, *, more: int = 0, common_len: int | None = None) -> int:
    """Blocks that a sequence comes to with its forks (`more` of them still to be made), when all are as long as they
    may get. What all begin with is there once; a prompt before it is forked is counted so."""
    members = together(sequence)
    if common_len is None:
        common_len = sequence.prompt_len if sequence.group is None else sequence.group.common_len
    each = -(-max(member.max_total_len for member in members) // block_size)
    common = (common_len - 1) // block_size
    return common + (sum(member.seats for member in members) + more) * (each - common)


def longest_len(prompt_len: int, seats: int, blocks: int, block_size: int) -> int:
    """How long each of `seats` forks of one prompt may get, prompt included, in so many blocks; 0 if not at all."""
    common = (prompt_len - 1) // block_size
    own = (blocks - common) // seats
    return (common + own) * block_size if own > 0 else 0
