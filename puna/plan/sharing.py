"""How many blocks sharing saves: counted in a simulation, and worked out for the same lengths.

The counting rule: of the blocks that all running sequences would hold without sharing, summed over all steps, the share
that is not held. A request of n samples counts n times from its first step on. Knows tables and lengths.
"""

from __future__ import annotations

from collections.abc import Iterable

from puna.plan.simulator import Moment


class Sharing:
    """A watch of the simulator, for schedulers without a prefix cache (its blocks would be shared by others too)."""

    def __init__(self) -> None:
        self.held = self.alone = 0  # blocks, summed over steps

    def on_step(self, moment: Moment) -> None:
        self.held += moment.scheduler.stats().blocks_used
        self.alone += sum(sequence.seats * len(sequence.blocks) for sequence in moment.scheduler.running)

    @property
    def saved(self) -> float:
        return 1 - self.held / self.alone


def fork_saving(lengths: Iterable[tuple[int, int]], samples: int, block_size: int) -> float:
    """The same figure for requests of (prompt, answer) tokens with `samples` samples each, all computed undisturbed.

    The step of the prompt holds its blocks once. From then on full blocks of the prompt are held once, and each sample
    holds what follows: the last block of the prompt too, where it is not full, since every sample writes into it.
    """
    held = alone = 0
    for prompt, answer in lengths:
        full = prompt // block_size
        tables = sum(-(-(prompt + t) // block_size) for t in range(answer))  # the last token drawn is never computed
        first = -(-prompt // block_size)
        alone += samples * tables
        held += first + full * (answer - 1) + samples * (tables - first - full * (answer - 1))
    return 1 - held / alone
