"""A scheduler over a fake KV pool, driven as an engine would drive it."""

from __future__ import annotations

from puna.sched.config import SchedulerConfig
from puna.sched.fcfs import Fcfs
from puna.sched.policy import Policy
from puna.sched.scheduler import Scheduler
from puna.sched.sequence import Sequence
from puna.sched.step import ScheduledStep

from .fake_kv import FakeKV, make_sequence


class Bench:
    """A scheduler over a fake pool; blocks of 4 tokens."""

    def __init__(self, num_blocks: int = 33, policy: Policy | None = None, **config: int | bool) -> None:
        fields: dict[str, int | bool] = {"max_model_len": 128, "block_size": 4, "budget_tokens": 64, **config}
        self.config = SchedulerConfig(num_blocks=num_blocks, **fields)  # type: ignore[arg-type]
        self.scheduler = Scheduler(self.config, policy or Fcfs())
        self.kv = FakeKV(self.config)
        self.count = 0

    def add(self, tokens: list[int], room: int = 20, **fields: object) -> Sequence:
        longest = min(len(tokens) + room, self.config.usable_blocks * self.config.block_size)
        sequence = make_sequence(self.count, tokens, longest, arrival=float(self.count), **fields)
        self.count += 1
        self.scheduler.add(sequence, 0.0)
        return sequence

    def fork(self, parent: Sequence, arrival: float | None = None) -> Sequence:
        child = make_sequence(self.count, list(parent.tokens), parent.max_total_len, priority=parent.priority)
        child.arrival = float(self.count) if arrival is None else arrival
        self.count += 1
        self.scheduler.fork(parent, child, 0.0)
        return child

    def step(self) -> ScheduledStep:
        """One step, and a token for every row that completes; a sequence that may not get longer ends."""
        step = self.scheduler.schedule(0.0)
        self.kv.run(step)
        self.scheduler.commit(step, 0.0)
        for row in step.rows:
            sequence = row.sequence
            if row.completes and sequence.total_len < sequence.max_total_len:
                self.scheduler.append(sequence, 50 + sequence.sequence_id, 0.0)
            elif row.completes:
                self.scheduler.finish(sequence, 0.0)
        self.scheduler.check_invariants()
        return step

    def finish(self, *sequences: Sequence) -> None:
        for sequence in sequences:
            self.scheduler.finish(sequence, 0.0)
        self.scheduler.check_invariants()


def rows(step: ScheduledStep) -> list[tuple[int, int, int, bool]]:
    return [(row.sequence.sequence_id, row.start, row.count, row.completes) for row in step.rows]
