"""Lower priority values first; among equals the earlier arrival. The last of that order gives way first.

A waiting sequence does not push a running one out: it is first in line for the next free place.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as SequenceOf

from puna.sched.policy import CachedLen, Policy
from puna.sched.sequence import Sequence


class Priority(Policy):
    """Keeps no state: priority and arrival stand on the sequence."""

    def order(self, waiting: SequenceOf[Sequence], cached_len_of: CachedLen) -> Iterable[Sequence]:  # noqa: ARG002
        return _in_order([(*_rank(sequence), sequence) for sequence in waiting])

    def victim(self, running: SequenceOf[Sequence]) -> Sequence:
        return max(running, key=_rank)


def _rank(sequence: Sequence) -> tuple[int, float, int]:
    return sequence.priority, sequence.arrival, sequence.sequence_id


def _in_order(ranked: list[tuple[int, float, int, Sequence]]) -> Iterator[Sequence]:
    """Sorts only as far as it is asked: a step admits few of many. Sequence ids differ, so sequences never compare."""
    heapq.heapify(ranked)
    while ranked:
        yield heapq.heappop(ranked)[-1]
