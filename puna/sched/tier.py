"""Room outside the pool for the blocks of swapped-out sequences.

Knows which slots of the tier are taken, not what a slot is: the runner holds the memory and executes the moves. The
scheduler swaps a victim out when `reserve` finds room and recomputes it later when it does not.
"""

from __future__ import annotations

from typing import Protocol


class Tier(Protocol):
    """Slots of one block each, numbered from 0."""

    capacity: int

    @property
    def free_count(self) -> int: ...

    def holders(self, slot: int) -> int: ...

    def reserve(self, count: int) -> list[int] | None:
        """`count` slots, or None if there are not that many: all or nothing."""
        ...

    def share(self, slots: list[int]) -> None:
        """One more holder of each: sequences that share a block share the slot that it goes to."""
        ...

    def release(self, slots: list[int]) -> None:
        """One holder less of each; without one a slot is free."""
        ...


class HostTier:
    """Slots in host memory. The last one released is the first one used again: its memory is warm."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = list(range(capacity - 1, -1, -1))
        self._holders = [0] * capacity

    @property
    def free_count(self) -> int:
        return len(self._free)

    def holders(self, slot: int) -> int:
        return self._holders[slot]

    def reserve(self, count: int) -> list[int] | None:
        if count > len(self._free):
            return None
        slots = [self._free.pop() for _ in range(count)]
        for slot in slots:
            self._holders[slot] = 1
        return slots

    def share(self, slots: list[int]) -> None:
        for slot in slots:
            if not self._holders[slot]:
                raise ValueError(f"tier slot {slot} was shared but is not taken")
            self._holders[slot] += 1

    def release(self, slots: list[int]) -> None:
        for slot in reversed(slots):
            if not self._holders[slot]:
                raise ValueError(f"tier slot {slot} was released but is not taken")
            self._holders[slot] -= 1
            if not self._holders[slot]:
                self._free.append(slot)
