"""What the memory of a pool is used for, step by step: written, reserved for later, lost to rounding, free.

A watch of the simulator. It reads block tables and the scheduler's figures and knows no workload.
"""

from __future__ import annotations

from dataclasses import dataclass

from puna.plan.simulator import Moment


@dataclass(frozen=True)
class PoolUse:
    """Means over steps. Of the pool's slots: `written` hold keys and values, `ahead` are a sequence's own and not
    written yet, `rounding` were handed out but can hold nothing, `free` nobody has. They add up to 1.

    batch        sequences that run
    written_len  tokens in memory of each
    useful       written slots over those that are not free
    """

    steps: int
    written: float
    ahead: float
    rounding: float
    free: float
    batch: float
    written_len: float
    useful: float


class Occupancy:
    """`backlogged`: only steps while others wait, so that memory alone limits who runs. `skip`: nothing before so many
    requests have ended: at first all that run are equally young. For schedulers without prefix cache and forks."""

    def __init__(self, *, backlogged: bool = False, skip: int = 0) -> None:
        self._backlogged, self._skip = backlogged, skip
        self.steps = self._slots = self._held = self._own = self._written = self._batch = 0

    def on_step(self, moment: Moment) -> None:
        scheduler = moment.scheduler
        stats = scheduler.stats()
        if moment.ended < self._skip or (self._backlogged and not stats.waiting + stats.swapped):
            return
        running, block_size = scheduler.running, scheduler.config.block_size
        self.steps += 1
        self._batch += len(running)
        self._written += sum(sequence.computed_len for sequence in running)
        self._own += block_size * sum(len(sequence.blocks) for sequence in running)
        self._held += block_size * stats.blocks_used
        self._slots += block_size * stats.blocks_total

    def use(self) -> PoolUse:
        """ValueError where no step was seen."""
        if not self.steps:
            raise ValueError("no step counted: nobody waited, or the run was too short")
        return PoolUse(
            steps=self.steps,
            written=self._written / self._slots,
            ahead=(self._own - self._written) / self._slots,
            rounding=(self._held - self._own) / self._slots,
            free=1 - self._held / self._slots,
            batch=self._batch / self.steps,
            written_len=self._written / self._batch,
            useful=self._written / self._held,
        )
