"""Forks of one sequence: admitted, preempted and brought back together, with what they share held once."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import pytest

from puna.errors import MemoryBudgetError
from puna.kernels.batch import MOVE_IN, MOVE_OUT
from puna.sched.fcfs import Fcfs
from puna.sched.sequence import Sequence, Status
from puna.sched.step import ScheduledStep

from .bench import Bench, rows


class Pusher(Fcfs):
    """Pushes the first of those that run out, when it is told to."""

    push = False

    def reclaim(self, waiting: SequenceOf[Sequence], running: SequenceOf[Sequence]) -> Sequence | None:  # noqa: ARG002
        return running[0] if self.push else None


def forked(bench: Bench, tokens: list[int], count: int, room: int = 8) -> list[Sequence]:
    """A sequence and its forks, one token into their outputs, each with another one."""
    parent = bench.add(tokens, room=room, seats=count)
    while parent.pending_len:
        bench.kv.run(step := bench.scheduler.schedule(0.0))
        bench.scheduler.commit(step, 0.0)
    members = [parent, *(bench.fork(parent) for _ in range(count - 1))]
    for number, member in enumerate(members):
        bench.scheduler.append(member, 50 + number, 0.0)
    return members


def push_out(bench: Bench) -> ScheduledStep:
    """A step in which the first of those that run gives way, and somebody else gets on who is gone afterwards."""
    policy = bench.scheduler.policy
    assert isinstance(policy, Pusher)
    other = bench.add([9])
    policy.push = True
    step = bench.step()
    policy.push = False
    bench.finish(other)
    return step


@pytest.mark.parametrize("tier_blocks", [0, 16])
@pytest.mark.parametrize("prefix_cache", [False, True])
def test_forks_give_way_together_and_come_back_with_what_they_share(tier_blocks: int, prefix_cache: bool) -> None:
    bench = Bench(policy=Pusher(), tier_blocks=tier_blocks, prefix_cache=prefix_cache)
    members = forked(bench, list(range(10)), 3)
    bench.step()
    assert bench.scheduler.stats().blocks_used == 2 + 3  # the prompt's whole blocks, and a last one each
    step = push_out(bench)
    assert step.preempted == tuple(members)
    assert {member.status for member in members} == {Status.SWAPPED if tier_blocks else Status.WAITING}
    known = [list(member.tokens) for member in members]
    for _ in range(3):
        bench.step()
    assert {member.status for member in members} == {Status.RUNNING}
    assert len({tuple(member.blocks[:2]) for member in members}) == 1
    assert [list(member.tokens[: len(was)]) for member, was in zip(members, known, strict=True)] == known
    assert all(member.total_len > len(was) for member, was in zip(members, known, strict=True))
    bench.finish(*members)
    assert bench.scheduler.stats().blocks_used == bench.scheduler.stats().tier_used == 0


def test_blocks_that_are_shared_go_to_the_tier_and_come_back_once() -> None:
    bench = Bench(policy=Pusher(), tier_blocks=16, prefix_cache=False)
    forked(bench, list(range(8)), 3)
    bench.step()
    outs = [src for kind, src, _ in push_out(bench).moves if kind == MOVE_OUT]
    assert len(outs) == len(set(outs)) == bench.scheduler.stats().tier_used == 2 + 3
    ins = [dst for kind, _, dst in bench.step().moves if kind == MOVE_IN]
    assert len(ins) == len(set(ins)) == 2 + 3
    assert bench.scheduler.stats().tier_used == 0


def test_a_partly_filled_block_that_forks_share_comes_back_for_each() -> None:
    """They write into it in the very step that brings them back."""
    bench = Bench(policy=Pusher(), tier_blocks=16, prefix_cache=False)
    members = forked(bench, list(range(6)), 3)
    push_out(bench)
    assert bench.scheduler.stats().tier_used == 2
    assert len(bench.step().rows) == 3
    assert len({member.blocks[0] for member in members}) == 1
    assert len({member.blocks[1] for member in members}) == 3


@pytest.mark.parametrize("budget", [3, 7, 64])
def test_a_common_beginning_is_recomputed_once_in_chunks_of_any_size(budget: int) -> None:
    bench = Bench(policy=Pusher(), prefix_cache=False, budget_tokens=budget)
    members = forked(bench, list(range(11)), 3)
    push_out(bench)
    computed = 0
    while not all(member.output_len > 1 for member in members):
        computed += sum(row.count for row in bench.step().rows if row.start < 12)
    assert computed == 8 + 3 * 4  # the prompt's whole blocks once, the rest for each
    assert bench.scheduler.stats().blocks_used == 2 + sum(len(member.blocks) - 2 for member in members)


def test_a_group_is_admitted_whole_or_not_at_all() -> None:
    bench = Bench(num_blocks=8, policy=Pusher(), prefix_cache=False)
    members = forked(bench, [1] * 8, 3, room=4)
    policy = bench.scheduler.policy
    assert isinstance(policy, Pusher)
    ahead = bench.add([2] * 10, room=6)
    policy.push = True
    assert bench.step().preempted == tuple(members)  # five blocks are needed for them, and three were taken
    policy.push = False
    assert ahead.status is Status.RUNNING
    bench.step()
    assert {member.status for member in members} == {Status.WAITING}
    bench.finish(ahead)
    bench.step()
    assert {member.status for member in members} == {Status.RUNNING}


def test_who_awaits_what_another_was_computing_starts_over_when_that_one_goes() -> None:
    bench = Bench(policy=Pusher(), prefix_cache=False)
    members = forked(bench, list(range(11)), 3)
    push_out(bench)
    bench.kv.run(step := bench.scheduler.schedule(0.0))
    assert rows(step) == [(0, 0, 12, True)]
    assert [member.awaits for member in members] == [0, 2, 2]
    bench.scheduler.abort(members[0], 0.0)  # while its step runs
    bench.scheduler.commit(step, 0.0)
    bench.scheduler.check_invariants()
    assert rows(bench.step()) == [(1, 0, 12, True)]
    assert rows(bench.step()) == [(1, 12, 1, True), (2, 8, 4, True)]


def test_a_dropped_beam_goes_on_as_a_fork_of_another_and_leaks_nothing() -> None:
    bench = Bench()
    first, second, third = forked(bench, list(range(8)), 3)
    for _ in range(5):
        bench.step()
    own = set(second.blocks) - set(first.blocks)
    used = bench.scheduler.stats().blocks_used
    bench.scheduler.refork(first, second)
    bench.kv.forget(second)
    assert second.tokens == first.tokens
    assert bench.scheduler.stats().blocks_used == used - len(own) == used - 2
    bench.scheduler.check_invariants()
    assert len(bench.step().rows) == 3
    assert first.blocks[:-1] == second.blocks[:-1]
    assert first.blocks[-1] != second.blocks[-1]  # the last one alone was copied, when it was written to
    bench.finish(first, second, third)
    assert bench.scheduler.stats().blocks_used == 0
    other = bench.add([1])
    bench.step()
    with pytest.raises(ValueError, match="of its group"):
        bench.scheduler.refork(other, other)


def test_forks_that_could_not_all_reach_their_end_are_refused_with_what_would_fit() -> None:
    bench = Bench(num_blocks=11)
    with pytest.raises(
        MemoryBudgetError, match=r"4 outputs .* need 14 KV blocks .* holds 10 .*max_tokens to at most 4"
    ):
        bench.add([1] * 12, room=8, seats=4)
    members = forked(bench, [1] * 12, 4, room=4)
    while any(member.status is not Status.FINISHED for member in members):
        assert not bench.step().preempted


def test_a_free_fork_beyond_the_pool_is_refused_and_changes_nothing() -> None:
    bench = Bench(num_blocks=7)
    parent = bench.add([1] * 5, room=7)
    bench.step()
    bench.fork(parent)
    with pytest.raises(MemoryBudgetError, match="another fork"):
        bench.fork(parent)
    assert bench.scheduler.stats().running == 2
    bench.step()
