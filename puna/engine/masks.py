"""Computes the masks of a step's rows on a thread of its own, while the forward pass runs.

The step's sampling waits for `ready` (puna/kernels/batch.py), which is set whatever happens: a row whose mask could not
be computed allows nothing, and its matcher says why. Knows matchers and arrays; does not know requests.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass

from puna.engine.matcher import Matcher
from puna.kernels.batch import SampleRows

STACK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, eq=False)
class MaskedRow:
    """Row `number` of a step draws what `matcher` allows."""

    number: int
    matcher: Matcher


class MaskWriter:
    """One step at a time: `begin` before it runs, `finish` before anybody looks at the matchers again."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[tuple[list[MaskedRow], SampleRows] | None] = queue.SimpleQueue()
        self._written = threading.Event()
        self._written.set()
        self._thread: threading.Thread | None = None

    def begin(self, masked: list[MaskedRow], rows: SampleRows) -> None:
        """`rows.mask` has a row for every row of the step; those of `masked` are written."""
        if self._thread is None:
            self._thread = self._start()
        rows.ready[0] = 0
        self._written.clear()
        self._orders.put((masked, rows))

    def finish(self) -> None:
        self._written.wait()

    def close(self) -> None:
        """Ends the thread."""
        if self._thread is not None:
            self._orders.put(None)
            self._thread.join()
            self._thread = None

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._work, name="masks", daemon=True)
        before = threading.stack_size(STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
        return thread

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            masked, rows = order
            try:
                mask = rows.mask
                first, stride = mask.ctypes.data, mask.strides[0]
                for row in masked:
                    try:
                        row.matcher.write_mask(mask[row.number], first + row.number * stride)
                    except Exception as error:  # of one row; the others go on
                        row.matcher.error = f"its mask could not be computed: {error}"
                        mask[row.number].fill(0)
            finally:
                rows.ready[0] = 1
                self._written.set()
