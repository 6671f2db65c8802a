"""Ten thousand requests through a small pool: all get their tokens, and nothing is left behind."""

from __future__ import annotations

import random

import pytest

from puna.sched.config import SchedulerConfig
from puna.sched.fcfs import Fcfs
from puna.sched.policy import Policy
from puna.sched.priority import Priority
from puna.sched.scheduler import Scheduler
from puna.sched.sequence import Sequence

from .fake_kv import make_sequence


@pytest.mark.parametrize(("policy", "tier_blocks"), [(Fcfs(), 0), (Priority(), 60)])
def test_ten_thousand_requests_leave_zero_blocks_used(policy: Policy, tier_blocks: int) -> None:
    config = SchedulerConfig(
        num_blocks=61, max_model_len=256, budget_tokens=256, max_seqs=32, tier_blocks=tier_blocks, max_waiting_seqs=64
    )
    scheduler = Scheduler(config, policy)
    draw = random.Random(0)
    prefixes = [[draw.randrange(1000) for _ in range(48)] for _ in range(8)]
    added = finished = aborted = 0
    alive: list[Sequence] = []
    step_count = 0
    while added < 10_000 or alive:
        while added < 10_000 and len(alive) < 60:
            prompt = [*draw.choice(prefixes)[: draw.randrange(49)], added % 1000]
            sequence = make_sequence(added, prompt, len(prompt) + draw.randrange(1, 41), priority=draw.randrange(3))
            scheduler.add(sequence, float(step_count))
            alive.append(sequence)
            added += 1
        step = scheduler.schedule(float(step_count))
        assert step.rows
        scheduler.commit(step, float(step_count))
        step_count += 1
        ended = set()
        for row in step.rows:
            if row.completes:
                scheduler.append(row.sequence, draw.randrange(1000), float(step_count))
                if row.sequence.total_len == row.sequence.max_total_len:
                    scheduler.finish(row.sequence, float(step_count))
                    ended.add(row.sequence)
                    finished += 1
        if draw.random() < 0.2:
            sequence = draw.choice(alive)
            if sequence not in ended:
                scheduler.abort(sequence, float(step_count))
                ended.add(sequence)
                aborted += 1
        alive = [sequence for sequence in alive if sequence not in ended]
        if step_count % 500 == 0:
            scheduler.check_invariants()
    scheduler.check_invariants()
    stats = scheduler.stats()
    assert (stats.blocks_used, stats.tier_used, stats.waiting, stats.running, stats.swapped) == (0, 0, 0, 0, 0)
    assert finished + aborted == 10_000
    assert finished > aborted > 0
    assert stats.preemptions > 0
    assert stats.prefix_hits > 0
    assert stats.evictions > 0
