"""A batch that is run again: everybody decodes, so that only positions, tokens and now and then a block are new.

Holds the arrays of one prepared step and moves them on by one token, in a few vector operations whatever the number of
rows. Knows arrays, slots and block tables; the runner knows which steps may be moved on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from puna.kernels.batch import I32, StepBatch
from puna.sched.step import ScheduledStep


@dataclass(slots=True, eq=False)
class SteadyBatch:
    """`ahead` int32 [2, R]: the positions of the tokens and of those drawn from them; its rows are the arrays of
    `batch`. `slots` int32 [R]: of each row in the runner's arrays. `penalised`: rows whose penalties read histories.

    After a forward pass nothing of this code is in the caches, and what counts is how much of it runs: a memoryview
    copies with half the instructions that NumPy needs to find out how, and adding an array saves casting a number.
    """

    batch: StepBatch
    ahead: I32
    slots: I32
    penalised: npt.NDArray[np.intp]
    _ones: I32 = field(init=False)
    _token_ids: Any = field(init=False)  # a memoryview

    def __post_init__(self) -> None:
        self._ones = np.ones_like(self.ahead)
        self._token_ids = self.batch.token_ids.data

    def advance(self, step: ScheduledStep, drawn: I32, tables: I32, history: I32) -> bool:
        """Moves the batch on to `step`, which repeats its own; `drawn` [R] are the tokens that it drew. `tables` and
        `history` are the runner's. False, and nothing done, where a table has no room for a new block."""
        if step.grown and not self._grow(step, tables):
            return False
        np.add(self.ahead, self._ones, self.ahead)
        self._token_ids[:] = drawn
        if self.penalised.size:
            rows = self.penalised
            history[self.slots[rows], self.ahead[0, rows]] = drawn[rows]
        return True

    def _grow(self, step: ScheduledStep, tables: I32) -> bool:
        own: npt.NDArray[Any] = self.batch.tables
        news = [(row, step.rows[row].sequence.blocks) for row in step.grown]
        if any(len(blocks) > own.shape[1] for _, blocks in news):
            return False
        for row, blocks in news:
            own[row, len(blocks) - 1] = tables[self.slots[row], len(blocks) - 1] = blocks[-1]
        return True
