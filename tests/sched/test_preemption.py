"""Giving way and coming back: recompute, swap, rows taken back, aborts, failed steps; one promise each."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf

import pytest

from puna.kernels.batch import MOVE_COPY, MOVE_IN, MOVE_OUT
from puna.sched.draft import Draft
from puna.sched.fcfs import Fcfs
from puna.sched.priority import Priority
from puna.sched.sequence import Sequence, Status

from .bench import Bench, rows
from .fake_kv import make_sequence


def crowded(**config: int | bool) -> tuple[Bench, Sequence, Sequence]:
    """Two sequences in five blocks; the second gives way in the next step."""
    bench = Bench(num_blocks=6, **config)
    first, second = bench.add([1, 2, 3, 4], room=16), bench.add([5] * 12, room=8)
    assert rows(bench.step()) == [(0, 0, 4, True), (1, 0, 12, True)]
    return bench, first, second


def test_when_memory_runs_out_the_last_to_start_is_preempted_and_returns_first() -> None:
    bench, first, second = crowded(prefix_cache=False)
    behind = bench.add([9])
    step = bench.step()
    assert step.preempted == (second,)
    assert rows(step) == [(0, 4, 1, True)]
    assert (second.status, second.computed_len, second.preemptions) == (Status.WAITING, 0, 1)
    assert behind.status is Status.WAITING  # nobody is admitted in a step that ran out of memory
    bench.finish(first)
    assert rows(bench.step()) == [(1, 0, 13, True), (2, 0, 1, True)]


def test_a_preempted_sequence_gets_its_prefix_back_from_the_cache() -> None:
    bench, first, second = crowded()
    assert bench.step().preempted == (second,)
    bench.finish(first)
    assert rows(bench.step()) == [(1, 12, 1, True)]


def test_priority_serves_the_lowest_value_first_and_preempts_the_highest() -> None:
    bench = Bench(num_blocks=6, policy=Priority(), max_seqs=2, prefix_cache=False)
    bench.add([1] * 4, priority=5, room=16)
    bench.add([2] * 4, priority=1, room=16)
    bench.add([3] * 4, priority=1, room=16)
    assert [row.sequence.sequence_id for row in bench.step().rows] == [1, 2]
    preempted = [bench.step().preempted for _ in range(9)]
    assert [s.sequence_id for victims in preempted for s in victims] == [2]


def test_a_victim_that_was_served_in_this_step_gives_its_row_and_budget_back() -> None:
    bench = Bench(num_blocks=5, policy=Priority(), budget_tokens=9, prefix_cache=False)
    unimportant = bench.add([1] * 5, priority=5, room=8)
    bench.step()
    bench.add([2] * 8, priority=0, room=8)
    bench.step()
    step = bench.step()
    assert step.preempted == (unimportant,)
    assert rows(step) == [(1, 8, 1, True)]
    assert step.tokens == 1


@pytest.mark.parametrize("tier_blocks", [0, 8])
def test_the_copy_of_a_victim_is_cancelled_or_made_before_it_is_swapped_out(tier_blocks: int) -> None:
    bench = Bench(num_blocks=6, policy=Priority(), prefix_cache=False, tier_blocks=tier_blocks)
    parent = bench.add([1] * 5, priority=5, room=3, seats=2)
    bench.step()
    important = bench.add([2] * 8, priority=0, room=8)
    bench.step()
    child = bench.fork(parent)
    head, shared = parent.blocks
    free = bench.scheduler._tables.pool._next[0]
    step = bench.step()  # parent splits from child into the last free block, then the important one needs one
    assert step.preempted == (parent, child)
    assert rows(step) == [(1, 8, 1, True)]
    copied = [(MOVE_COPY, shared, free), (MOVE_OUT, head, 0), (MOVE_OUT, free, 1), (MOVE_OUT, shared, 2)]
    assert list(step.moves) == (copied if tier_blocks else [])
    bench.finish(important)
    assert rows(bench.step()) == ([(0, 6, 1, True), (2, 6, 1, True)] if tier_blocks else [(0, 0, 7, True)])


def test_cancelling_a_copy_leaves_an_earlier_one_into_the_same_block_alone() -> None:
    draft = Draft(budget=8)
    swapped, recomputed = make_sequence(0, [1], 4), make_sequence(1, [1], 4)
    draft.add_copy(swapped, (MOVE_COPY, 1, 3))
    draft.moves.append((MOVE_OUT, 3, 0))
    draft.add_copy(recomputed, (MOVE_COPY, 1, 3))  # block 3 was free again
    draft.cancel_copy(recomputed)
    assert draft.moves == [(MOVE_COPY, 1, 3), (MOVE_OUT, 3, 0)]


def test_a_swapped_out_sequence_goes_on_where_it_stopped() -> None:
    bench, first, second = crowded(tier_blocks=8, prefix_cache=False)
    held = list(second.blocks)
    step = bench.step()
    assert second.status is Status.SWAPPED
    assert step.moves == tuple((MOVE_OUT, block, slot) for slot, block in enumerate(held))
    assert bench.scheduler.stats().tier_used == 3
    bench.finish(first)
    step = bench.step()
    assert rows(step) == [(1, 12, 1, True)]
    assert step.moves == tuple((MOVE_IN, slot, block) for slot, block in enumerate(second.blocks[:3]))
    assert bench.scheduler.stats().tier_used == 0


def test_swapping_in_moves_only_what_the_cache_has_lost() -> None:
    bench, first, _ = crowded(tier_blocks=8)
    for _ in range(6):
        bench.step()  # the first one grows over the end of the second one's chain
    bench.finish(first)
    step = bench.step()
    assert [(kind, src) for kind, src, _ in step.moves] == [(MOVE_IN, 2)]
    assert rows(step) == [(1, 12, 1, True)]


def test_blocks_that_come_back_from_the_tier_can_be_found_again() -> None:
    bench, first, second = crowded(tier_blocks=8)
    while bench.scheduler.stats().blocks_free:
        bench.step()
    bench.finish(first)
    bench.step()
    assert second.status is Status.RUNNING
    bench.finish(second)
    again = bench.add([5] * 13)
    bench.step()
    assert again.cached_len == 12


def test_without_room_in_the_tier_a_victim_is_recomputed() -> None:
    bench, _, second = crowded(tier_blocks=2)
    step = bench.step()
    assert (second.status, step.moves) == (Status.WAITING, ())


def test_a_policy_may_ask_for_a_place_back_and_the_one_it_favours_gets_it_in_the_same_step() -> None:
    class Youngest(Fcfs):
        def order(self, waiting: SequenceOf[Sequence], cached_len_of: object) -> Iterable[Sequence]:  # noqa: ARG002
            return sorted(waiting, key=lambda s: -s.arrival)

        def reclaim(self, waiting: SequenceOf[Sequence], running: SequenceOf[Sequence]) -> Sequence | None:
            return running[0] if waiting[-1].arrival > running[0].arrival else None

    bench = Bench(policy=Youngest(), max_seqs=1)
    old = bench.add([1, 2])
    bench.step()
    bench.add([3, 4])
    step = bench.step()
    assert step.preempted == (old,)
    assert rows(step) == [(1, 0, 2, True)]


def test_what_a_policy_sheds_has_ended_and_is_reported() -> None:
    class Impatient(Fcfs):
        def shed(self, waiting: SequenceOf[Sequence], now: float) -> Iterable[Sequence]:
            return [sequence for sequence in waiting if now >= sequence.arrival]

    bench = Bench(policy=Impatient(), max_seqs=1)
    late = bench.add([1])
    assert bench.scheduler.schedule(1.0).shed == (late,)
    assert late.status is Status.FINISHED


@pytest.mark.parametrize("state", [Status.WAITING, Status.SWAPPED, Status.RUNNING])
def test_an_abort_gives_everything_back_in_every_state_and_may_be_repeated(state: Status) -> None:
    bench, first, second = crowded(tier_blocks=8 if state is Status.SWAPPED else 0)
    if state is not Status.RUNNING:
        bench.step()
    assert second.status is state
    for _ in range(2):
        bench.scheduler.abort(second, 0.0)
        bench.scheduler.abort(first, 0.0)
        bench.scheduler.check_invariants()
    stats = bench.scheduler.stats()
    assert (stats.blocks_used, stats.tier_used, stats.running, stats.waiting, stats.swapped) == (0, 0, 0, 0, 0)


def test_a_sequence_aborted_while_its_step_runs_is_left_out_of_the_commit() -> None:
    bench = Bench()
    sequence = bench.add([1, 2, 3, 4])
    step = bench.scheduler.schedule(0.0)
    bench.scheduler.abort(sequence, 0.0)
    bench.scheduler.commit(step, 0.0)
    bench.scheduler.check_invariants()
    assert (sequence.computed_len, bench.scheduler.stats().blocks_cached) == (0, 0)


def test_after_a_failed_step_its_sequences_start_over_in_order_and_others_are_untouched() -> None:
    bench = Bench(budget_tokens=6)
    first, second = bench.add([1] * 6), bench.add([2] * 6)
    bench.step()
    step = bench.scheduler.schedule(0.0)
    assert rows(step) == [(0, 6, 1, True), (1, 0, 5, False)]
    bench.scheduler.abandon(step)
    bench.scheduler.check_invariants()
    assert (first.status, second.status) == (Status.WAITING, Status.WAITING)
    assert rows(bench.step()) == [(0, 4, 3, True), (1, 0, 3, False)]


def test_what_a_failed_step_swapped_out_is_recomputed() -> None:
    bench, first, second = crowded(tier_blocks=8, prefix_cache=False)
    step = bench.scheduler.schedule(0.0)
    assert second.status is Status.SWAPPED
    bench.scheduler.abandon(step)
    assert (second.status, second.computed_len, bench.scheduler.stats().tier_used) == (Status.WAITING, 0, 0)
    bench.finish(first)
    assert rows(bench.step()) == [(1, 0, 13, True)]


def test_what_came_back_in_a_failed_step_is_recomputed_even_if_it_had_no_row() -> None:
    bench = Bench(num_blocks=6, tier_blocks=8, prefix_cache=False)
    first, idle = bench.add([1] * 4, room=16), bench.add([2] * 15)
    step = bench.scheduler.schedule(0.0)
    bench.kv.run(step)
    bench.scheduler.commit(step, 0.0)
    bench.scheduler.append(first, 9, 0.0)  # the other one's next token is not drawn yet
    assert bench.step().preempted == (idle,)
    bench.finish(first)
    step = bench.scheduler.schedule(0.0)
    assert (rows(step), len(step.moves), idle.status) == ([], 4, Status.RUNNING)
    bench.scheduler.abandon(step)
    bench.scheduler.check_invariants()
    assert (idle.status, idle.computed_len) == (Status.WAITING, 0)
    assert rows(bench.step()) == [(1, 0, 15, True)]


def test_a_step_must_be_committed_before_the_next_and_only_once() -> None:
    bench = Bench()
    bench.add([1, 2])
    step = bench.scheduler.schedule(0.0)
    with pytest.raises(ValueError, match="neither committed nor abandoned"):
        bench.scheduler.schedule(0.0)
    bench.scheduler.commit(step, 0.0)
    with pytest.raises(ValueError, match="only once"):
        bench.scheduler.commit(step, 0.0)


def test_a_sequence_that_outgrows_the_whole_pool_ends_alone() -> None:
    bench = Bench(num_blocks=4)
    giant, other = bench.add([1] * 8, room=4), bench.add([2])
    bench.step()
    giant.max_total_len = 100  # behind the scheduler's back: `add` would have refused it
    steps = [bench.step() for _ in range(8)]
    assert [s for step in steps for s in step.impossible] == [giant]
    assert giant.status is Status.FINISHED
    assert other.status is Status.RUNNING
