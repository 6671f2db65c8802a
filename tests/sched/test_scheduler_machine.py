"""Random lives of many sequences, checked against what the KV memory really holds after every step."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from puna.errors import MemoryBudgetError, OverloadedError
from puna.sched.config import SchedulerConfig
from puna.sched.fcfs import Fcfs
from puna.sched.group import Group, common_with_fork, most_blocks
from puna.sched.policy import CachedLen, Policy
from puna.sched.priority import Priority
from puna.sched.scheduler import Scheduler
from puna.sched.sequence import Sequence, Status
from puna.sched.step import ScheduledStep

from .fake_kv import FakeKV, make_sequence

MAX_MODEL_LEN = 24


class Capricious(Policy):
    """Takes any victim, admits in any order, pushes out and sheds on a whim: the mechanism has to stand all of it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.alive = 0

    def order(self, waiting: SequenceOf[Sequence], cached_len_of: CachedLen) -> Iterable[Sequence]:
        return sorted(waiting, key=lambda s: (cached_len_of(s), self.random.random()))

    def victim(self, running: SequenceOf[Sequence]) -> Sequence:
        return self.random.choice(running)

    def reclaim(self, waiting: SequenceOf[Sequence], running: SequenceOf[Sequence]) -> Sequence | None:
        return self.random.choice(running) if waiting and self.random.random() < 0.1 else None

    def shed(self, waiting: SequenceOf[Sequence], now: float) -> Iterable[Sequence]:
        return [s for s in waiting if now >= 0 and self.random.random() < 0.02]

    def on_arrival(self, sequence: Sequence, now: float) -> None:  # noqa: ARG002
        self.alive += 1

    def on_exit(self, sequence: Sequence, now: float) -> None:  # noqa: ARG002
        self.alive -= 1


def group_of(sequence: Sequence) -> Group:
    assert sequence.group is not None
    return sequence.group


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        blocks=st.integers(2, 14),
        block_size=st.sampled_from([1, 2, 4]),
        budget=st.sampled_from([1, 3, 8, 64]),
        prefill=st.sampled_from([0, 0, 5, 64]),
        max_seqs=st.sampled_from([1, 3, 8]),
        prefix_cache=st.booleans(),
        watermark=st.integers(0, 2),
        long_prefill=st.sampled_from([0, 0, 2]),
        history=st.sampled_from([0, 1, 9]),
        tier=st.sampled_from([0, 3, 12]),
        policy=st.one_of(st.sampled_from(["fcfs", "priority"]), st.integers(0, 99)),
    )
    def start(
        self,
        blocks: int,
        block_size: int,
        budget: int,
        prefill: int,
        max_seqs: int,
        prefix_cache: bool,
        watermark: int,
        long_prefill: int,
        history: int,
        tier: int,
        policy: str | int,
    ) -> None:
        self.config = SchedulerConfig(
            num_blocks=blocks,
            max_model_len=MAX_MODEL_LEN,
            block_size=block_size,
            budget_tokens=budget,
            prefill_tokens=prefill,
            max_seqs=max_seqs,
            prefix_cache=prefix_cache,
            watermark_blocks=watermark,
            long_prefill_tokens=long_prefill,
            history_tokens=history,
            tier_blocks=tier,
            max_waiting_seqs=12,
            max_waiting_tokens=150,
        )
        policies: dict[str | int, Policy] = {"fcfs": Fcfs(), "priority": Priority()}
        self.policy = policies.get(policy) or Capricious(int(policy))
        self.scheduler = Scheduler(self.config, self.policy)
        self.kv = FakeKV(self.config)
        self.alive: list[Sequence] = []
        self.next_id = 0
        self.now = 0.0
        self.last: ScheduledStep | None = None

    @rule(
        prefix=st.integers(0, 12),
        tail=st.lists(st.integers(0, 2), min_size=1, max_size=6),
        room=st.integers(0, 10),
        seats=st.sampled_from([1, 1, 1, 2, 3]),
        priority=st.integers(0, 2),
        salt=st.sampled_from(["", "", "", "x"]),
        keys=st.sampled_from([(), (), (("adapter", "a"),)]),
        reuse=st.sampled_from([True, True, True, False]),
    )
    def add(
        self,
        prefix: int,
        tail: list[int],
        room: int,
        seats: int,
        priority: int,
        salt: str,
        keys: tuple[tuple[str, str], ...],
        reuse: bool,
    ) -> None:
        prompt = [7, 8, 9, 7, 8, 9, 7, 8, 9, 7, 8, 9][:prefix] + tail
        longest = min(MAX_MODEL_LEN, self.config.usable_blocks * self.config.block_size)
        prompt = prompt[:longest]
        sequence = make_sequence(
            self.next_id,
            prompt,
            min(len(prompt) + room, longest),
            arrival=float(self.next_id),
            priority=priority,
            cache_salt=salt,
            extra_keys=keys,
            reuse_prefix=reuse,
            seats=min(seats, self.config.max_seqs),
        )
        self.next_id += 1
        waiting = self.scheduler.stats().waiting + self.scheduler.stats().swapped
        fits = most_blocks(sequence, self.config.block_size) <= self.config.usable_blocks
        with contextlib.suppress(OverloadedError, MemoryBudgetError):
            self.scheduler.add(sequence, self.now)
            self.alive.append(sequence)
        assert waiting > 0 or (sequence in self.alive) == fits
        assert fits or sequence.seats > 1

    @rule(data=st.data(), steps=st.integers(1, 6))
    def steps(self, data: st.DataObject, steps: int) -> None:
        for _ in range(steps):
            self.now += 0.5
            step = self.plan()
            self.kv.run(step)
            if self.alive and data.draw(st.integers(0, 19)) == 0:  # a client hangs up while the step runs
                self.abort(data)
            if self.drew_in_one_go(step, data):
                continue
            self.scheduler.commit(step, self.now)
            for row in step.rows:
                if row.completes and row.sequence.status is Status.RUNNING:
                    self.sampled(row.sequence, data.draw(st.integers(0, 2)), data.draw(st.booleans()))
            self.check()

    def drew_in_one_go(self, step: ScheduledStep, data: st.DataObject) -> bool:
        """The same as `commit`, `append` and `finish` one by one, for a step in which every row draws one token."""
        plain = all(r.count == 1 and r.completes and r.sequence.seats == 1 and self.runs(r.sequence) for r in step.rows)
        room = all(row.sequence.total_len < row.sequence.max_total_len for row in step.rows)
        if not (step.rows and plain and room):
            return False
        tokens = [data.draw(st.integers(-1, 2)) for _ in step.rows]
        lengths = [row.sequence.total_len + (token >= 0) for row, token in zip(step.rows, tokens, strict=True)]
        whole = self.scheduler.commit_drawn(step, tokens, self.now)
        assert [row.sequence.total_len for row in step.rows] == lengths
        for number, row in enumerate(step.rows):
            assert row.sequence.computed_len == row.start + 1
            is_whole = tokens[number] >= 0 and lengths[number] == row.sequence.max_total_len
            assert (number in whole) == is_whole
            if is_whole or tokens[number] < 0:
                self.scheduler.finish(row.sequence, self.now)
                self.alive.remove(row.sequence)
        self.check()
        return True

    def runs(self, sequence: Sequence) -> bool:
        return sequence.status is Status.RUNNING

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.alive))
        self.scheduler.abort(sequence, self.now)
        self.scheduler.abort(sequence, self.now)
        self.alive.remove(sequence)

    @rule()
    def a_step_fails(self) -> None:
        step = self.plan()
        for row in step.rows:  # whatever it wrote is rubbish, and so is all it moved to the tier
            for position in range(row.start, row.start + row.count):
                self.kv.pool[row.sequence.blocks[position // self.kv.block_size]][position % self.kv.block_size] = None
        for kind, _, dst in step.moves:
            (self.kv.tier if kind == 1 else self.kv.pool)[dst] = [None] * self.kv.block_size
        self.scheduler.abandon(step)

    @precondition(lambda self: any(s.status is Status.RUNNING for s in self.alive))
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent = data.draw(st.sampled_from([s for s in self.alive if s.status is Status.RUNNING]))
        try:
            self.fork_from(parent)
        except (OverloadedError, MemoryBudgetError):
            assert self.scheduler.stats().running > 0

    @precondition(lambda self: self.beams())
    @rule(data=st.data())
    def beam_step(self, data: st.DataObject) -> None:
        """Beams are dropped for forks of others, in their seats."""
        members = data.draw(st.sampled_from(self.beams()))
        for dropped in data.draw(st.lists(st.sampled_from(members), max_size=3)):
            kept = data.draw(st.sampled_from(members))
            if kept is not dropped and common_with_fork(kept) >= group_of(kept).common_len:
                self.scheduler.refork(kept, dropped)
                self.kv.forget(dropped)
                self.check()

    def beams(self) -> list[list[Sequence]]:
        groups = {id(s.group): s.group.members for s in self.alive if s.group is not None}
        whole = [those for those in groups.values() if len(those) > 1 and not any(s.awaits for s in those)]
        return [those for those in whole if self.runs(those[0])]

    @invariant()
    def everything_adds_up(self) -> None:
        if hasattr(self, "scheduler"):
            self.check()

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(5000):  # the rest runs to its end; were there a livelock, it would not
            if not self.alive:
                break
            step = self.plan()
            self.kv.run(step)
            self.scheduler.commit(step, self.now)
            for row in step.rows:
                if row.completes:
                    self.sampled(row.sequence, 1, False)
            for sequence in [s for s in self.alive if s.status is Status.RUNNING and s.pending_len == 0]:
                self.sampled(sequence, 1, False)
            self.check()
        assert not self.alive, "sequences do not get on"
        stats = self.scheduler.stats()
        assert (stats.waiting, stats.running, stats.swapped) == (0, 0, 0)
        assert (stats.blocks_used, stats.tier_used, stats.waiting_tokens) == (0, 0, 0)
        assert getattr(self.policy, "alive", 0) == 0

    def plan(self) -> ScheduledStep:
        before = [(row.sequence, row.start + 1) for row in self.last.rows] if self.last else []
        held = {s.sequence_id: len(s.blocks) for s in self.alive}
        begun = any(s.output_len and s.status is Status.RUNNING for s in self.alive)
        step = self.last = self.scheduler.schedule(self.now)
        if step.repeats:
            assert [(row.sequence, row.start) for row in step.rows] == before
            assert all(row.count == 1 and row.completes for row in step.rows)
            assert (step.moves, step.preempted, step.shed) == ((), (), ())
            grown = [len(row.sequence.blocks) - held[row.sequence.sequence_id] for row in step.rows]
            assert [r for r, more in enumerate(grown) if more] == list(step.grown)
        self.alive = [s for s in self.alive if s not in step.shed]
        assert not step.impossible
        budget = self.config.budget_tokens if begun else self.config.prefill_tokens or self.config.budget_tokens
        assert step.tokens == sum(row.count for row in step.rows) <= budget
        served = [row.sequence.sequence_id for row in step.rows]
        assert len(set(served)) == len(served) <= self.config.max_seqs
        assert not {s.sequence_id for s in step.preempted} & set(served)
        for row in step.rows:
            assert row.count > 0
            assert row.start == row.sequence.computed_len
            assert row.completes == (row.start + row.count == row.sequence.total_len)
        return step

    def sampled(self, sequence: Sequence, token: int, stop: bool) -> None:
        """What an engine does with a drawn token: fork the samples of a prompt, append, finish."""
        children = [self.fork_from(sequence) for _ in range(sequence.seats - 1)]
        for index, each in enumerate([sequence, *children]):
            if stop or each.total_len == each.max_total_len:
                self.scheduler.finish(each, self.now)
                self.alive.remove(each)
            else:
                self.scheduler.append(each, token + index, self.now)

    def fork_from(self, parent: Sequence) -> Sequence:
        child = make_sequence(
            self.next_id,
            list(parent.tokens),
            parent.max_total_len,
            arrival=parent.arrival,
            priority=parent.priority,
            cache_salt=parent.cache_salt,
            extra_keys=parent.extra_keys,
            reuse_prefix=parent.reuse_prefix,
        )
        child.prompt_len = parent.prompt_len
        self.next_id += 1
        self.scheduler.fork(parent, child, self.now)
        self.alive.append(child)
        return child

    def check(self) -> None:
        self.scheduler.check_invariants()
        states = [s.status for s in self.alive]
        stats = self.scheduler.stats()
        assert stats.running == states.count(Status.RUNNING)
        assert stats.swapped == states.count(Status.SWAPPED)
        assert stats.waiting == states.count(Status.WAITING)
        for group in {id(s.group): s.group for s in self.alive if s.group is not None}.values():
            held = {block for member in group.members for block in member.blocks}
            assert len(held) <= most_blocks(group.members[0], self.config.block_size)
        assert stats.blocks_used + stats.blocks_free == stats.blocks_total == self.config.num_blocks - 1


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=600,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
