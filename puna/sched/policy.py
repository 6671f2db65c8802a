"""What a scheduling policy decides: the order of the waiting, and who gives way.

A policy hears of arrivals, tokens and exits and may keep counters of its own. It never touches blocks, budgets or a
sequence's state: that is the scheduler's. It has no clock; times are passed in, in seconds.
"""

# ruff: noqa: ARG002 - the defaults ignore what they are told

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from typing import Protocol

from puna.sched.sequence import Sequence

CachedLen = Callable[[Sequence], int]  # tokens of a waiting sequence that the prefix cache holds right now


class Policy(Protocol):
    """Subclass it: `order` and `victim` have to be written, the rest does nothing until overridden."""

    @abstractmethod
    def order(self, waiting: SequenceOf[Sequence], cached_len_of: CachedLen) -> Iterable[Sequence]:
        """`waiting` in the order of admission; the scheduler stops at the first that does not fit. Preempted sequences
        stand at the front of `waiting`. Not to be modified; returning it unchanged is fine."""
        ...

    @abstractmethod
    def victim(self, running: SequenceOf[Sequence]) -> Sequence:
        """The one of `running` (never empty) that gives its blocks back because memory ran out."""
        ...

    def reclaim(self, waiting: SequenceOf[Sequence], running: SequenceOf[Sequence]) -> Sequence | None:
        """Asked once a step, while some wait and some run: one of `running` to preempt so that a waiting sequence gets
        its place, or None."""
        return None

    def shed(self, waiting: SequenceOf[Sequence], now: float) -> Iterable[Sequence]:
        """Those of `waiting` to give up on: they leave without (further) running."""
        return ()

    def on_arrival(self, sequence: Sequence, now: float) -> None:
        """`sequence` was added, or forked from a running one."""
        return

    def on_tokens(self, sequence: Sequence, computed: int, drawn: int, now: float) -> None:
        """`computed` more known tokens went through the model (again, after a preemption), `drawn` more were drawn."""
        return

    def on_exit(self, sequence: Sequence, now: float) -> None:
        """`sequence` finished or was aborted or shed."""
        return
