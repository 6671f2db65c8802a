"""A buddy allocator: contiguous ranges of powers of two, out of a space of any size.

A range of 2^k units begins at a multiple of 2^k. It is split from the smallest larger one that is free, and joins its
other half again as soon as both are free. Knows units and offsets; what lies in them is others' business.
"""

from __future__ import annotations


class BuddyAllocator:
    """`free_units` of `size` are in no range. Among equals the lowest offset is taken, so runs repeat."""

    def __init__(self, size: int) -> None:
        self.size = self.free_units = size
        self._free: list[set[int]] = [set() for _ in range(size.bit_length())]  # by k, the offsets of free ranges
        self._taken: dict[int, int] = {}  # offset -> k
        offset = 0
        for k in reversed(range(size.bit_length())):
            if size >> k & 1:
                self._free[k].add(offset)
                offset += 1 << k

    @property
    def largest(self) -> int:
        """The longest range there can be, with nothing taken."""
        return 1 << (self.size.bit_length() - 1)

    def has_room(self, units: int) -> bool:
        return any(self._free[rounded(units) :])

    def allocate(self, units: int) -> int:
        """The offset of a range that holds `units`, at least one. ValueError where there is none: ask `has_room`."""
        wanted = rounded(units)
        k = next((k for k in range(wanted, len(self._free)) if self._free[k]), None)
        if k is None:
            raise ValueError(f"no free range holds {units} units; ask has_room first")
        offset = min(self._free[k])
        self._free[k].remove(offset)
        while k > wanted:
            k -= 1
            self._free[k].add(offset + (1 << k))
        self._taken[offset] = wanted
        self.free_units -= 1 << wanted
        return offset

    def free(self, offset: int) -> None:
        """Gives back the range that `allocate` returned `offset` for. ValueError where none begins there."""
        k = self._taken.pop(offset, None)
        if k is None:
            raise ValueError(f"no range begins at {offset}")
        self.free_units += 1 << k
        while k + 1 < len(self._free) and (buddy := offset ^ (1 << k)) in self._free[k]:
            self._free[k].remove(buddy)
            offset = min(offset, buddy)
            k += 1
        self._free[k].add(offset)

    def check(self) -> None:
        """Asserts that ranges, taken and free, cover everything once, and that no two free halves lie side by side."""
        ranges = [(offset, k, True) for k, offsets in enumerate(self._free) for offset in offsets]
        ranges += [(offset, k, False) for offset, k in self._taken.items()]
        end = 0
        for offset, k, _ in sorted(ranges):
            assert offset == end, f"a range begins at {offset}, the one before ended at {end}"
            assert offset % (1 << k) == 0, f"a range of {1 << k} units begins at {offset}"
            end += 1 << k
        assert end == self.size, f"ranges end at {end}, the space at {self.size}"
        free = sum(1 << k for _, k, is_free in ranges if is_free)
        assert free == self.free_units, f"{free} units are free, {self.free_units} counted"
        for k, offsets in enumerate(self._free):
            assert not any(offset ^ (1 << k) in offsets for offset in offsets), f"two free halves of {1 << k} units"


def rounded(units: int) -> int:
    """The k of the smallest 2^k that holds `units`. ValueError below one."""
    if units < 1:
        raise ValueError(f"a range of {units} units; one at least")
    return (units - 1).bit_length()
