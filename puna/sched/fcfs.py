"""First come, first served: the order of the queue is the order of arrival, and the last to start gives way first."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf

from puna.sched.policy import CachedLen, Policy
from puna.sched.sequence import Sequence


class Fcfs(Policy):
    """Keeps no state: the scheduler's queue is already in order of arrival, preempted sequences in front."""

    def order(self, waiting: SequenceOf[Sequence], cached_len_of: CachedLen) -> Iterable[Sequence]:  # noqa: ARG002
        return waiting

    def victim(self, running: SequenceOf[Sequence]) -> Sequence:
        return running[-1]
