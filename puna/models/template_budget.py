"""What one rendering of a chat template may cost, and how the size of a value is measured.

Steps (loop passes, calls, filters, operations), characters built and seconds of this thread's processor time are
counted down; the first to run out stops the rendering. It knows values, not templates.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

MAX_STEPS = 2_000_000  # loop passes, calls, filters and operations of one rendering
MAX_CHARACTERS = 2**23  # of one value
MAX_ITEMS = 2**18  # of one value, counted with all that is nested in it
MAX_DEPTH = 64
MAX_TOTAL = 2**29  # characters and items that one rendering may build in all
MAX_INTEGER_BITS = 4096


class Budget:
    """What one rendering has left. Raises SecurityError when something runs out."""

    def __init__(self, deadline_s: float) -> None:
        self._steps = MAX_STEPS
        self._total = MAX_TOTAL
        self._deadline_s = deadline_s
        self._cpu_end_s = time.thread_time() + deadline_s

    def step(self, characters: int = 0) -> None:
        self._steps -= 1
        if self._steps < 0:
            raise SecurityError(f"the template takes more than {MAX_STEPS} steps")
        if self._steps % 32 == 0:
            self._check_time()
        if characters:
            self.charge(characters)

    def charge(self, amount: int) -> None:
        self._total -= amount
        if self._total < 0:
            raise SecurityError(f"the template builds more than {MAX_TOTAL} characters in all")
        if amount > 10_000:
            self._check_time()

    def weigh(self, value: Any) -> None:
        """Charges for a new value and refuses one that is too large. Nested values count as often as they are reached,
        as they would when written out."""
        if isinstance(value, str | bytes):
            self.reserve(len(value))
        elif isinstance(value, list | tuple | dict | set | frozenset | Namespace):
            self.reserve(_written_size(value))
        elif isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
            raise SecurityError(f"the template computes an integer of more than {MAX_INTEGER_BITS} bits")

    def reserve(self, characters: int) -> None:
        if characters > MAX_CHARACTERS:
            raise SecurityError(f"the template builds a value of {characters} characters; allowed: {MAX_CHARACTERS}")
        self.charge(characters)

    def _check_time(self) -> None:
        if time.thread_time() > self._cpu_end_s:
            raise SecurityError(f"the template computes for more than {self._deadline_s:g} s")


def _written_size(root: Any) -> int:
    """Characters that a nested value takes when written out, about; refuses what is too large while it counts."""
    size = 0
    items = 0
    waiting: list[tuple[Any, int]] = [(root, 0)]
    while waiting:
        value, depth = waiting.pop()
        items += 1
        if items > MAX_ITEMS or depth > MAX_DEPTH:
            raise SecurityError(f"the template builds a value of more than {MAX_ITEMS} items or {MAX_DEPTH} levels")
        if isinstance(value, str | bytes):
            size += len(value)
        elif isinstance(value, Namespace):
            waiting.append((_attributes(value), depth + 1))
        elif isinstance(value, Mapping):
            waiting += [(entry, depth + 1) for pair in value.items() for entry in pair]
        elif isinstance(value, list | tuple | set | frozenset):
            if len(value) > MAX_ITEMS:
                raise SecurityError(f"the template builds a list of {len(value)} items; allowed: {MAX_ITEMS}")
            waiting += [(entry, depth + 1) for entry in value]
        size += 4
    return size


def _attributes(namespace: Namespace) -> dict[str, Any]:
    attributes: dict[str, Any] = object.__getattribute__(namespace, "_Namespace__attrs")
    return attributes
