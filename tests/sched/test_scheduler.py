"""Steps, prefix hits and forks, one promise each; the fake KV pool checks in all of them that tables tell the truth."""

from __future__ import annotations

import pytest

from puna.errors import OverloadedError
from puna.kernels.batch import MOVE_COPY
from puna.sched.sequence import Status

from .bench import Bench, rows


def test_a_prompt_is_computed_once_and_then_grows_by_one_token_a_step() -> None:
    bench = Bench()
    bench.add([1, 2, 3, 4, 5])
    assert rows(bench.step()) == [(0, 0, 5, True)]
    assert rows(bench.step()) == [(0, 5, 1, True)]
    assert rows(bench.step()) == [(0, 6, 1, True)]


def test_decodes_go_on_while_a_long_prompt_is_computed_in_chunks() -> None:
    bench = Bench(budget_tokens=8)
    bench.add([1, 2, 3])
    bench.step()
    bench.add(list(range(20)))
    assert rows(bench.step()) == [(0, 3, 1, True), (1, 0, 7, False)]
    assert rows(bench.step()) == [(0, 4, 1, True), (1, 7, 7, False)]
    assert rows(bench.step()) == [(0, 5, 1, True), (1, 14, 6, True)]


def test_one_long_prompt_leaves_budget_to_others_where_its_chunk_is_capped() -> None:
    bench = Bench(budget_tokens=10, long_prefill_tokens=6)
    bench.add(list(range(20)))
    bench.add([1, 2, 3])
    assert rows(bench.step()) == [(0, 0, 6, False), (1, 0, 3, True)]


def test_a_step_never_hands_out_more_than_its_budget() -> None:
    bench = Bench(budget_tokens=5)
    for _ in range(8):
        bench.add([1, 2])
    assert [bench.step().tokens for _ in range(4)] == [5, 5, 5, 5]


def test_while_nobody_waits_for_a_next_token_a_step_has_the_budget_of_prompts() -> None:
    bench = Bench(budget_tokens=5, prefill_tokens=12)
    bench.add(list(range(30)))
    assert [bench.step().tokens for _ in range(3)] == [12, 12, 6]
    bench.add(list(range(50, 80)))
    assert rows(bench.step()) == [(0, 30, 1, True), (1, 0, 4, False)]
    assert bench.step().tokens == 5


def test_a_cached_prefix_is_not_computed_again_but_the_last_token_is() -> None:
    bench = Bench()
    first = bench.add(list(range(12)))
    bench.step()
    bench.finish(first)
    again = bench.add(list(range(12)))
    assert rows(bench.step()) == [(1, 8, 4, True)]
    assert again.cached_len == 8
    stats = bench.scheduler.stats()
    assert (stats.prefix_queries, stats.prefix_hits) == (24, 8)


def test_generated_tokens_are_found_by_the_next_turn_of_a_conversation() -> None:
    bench = Bench()
    first = bench.add([1, 2, 3])
    for _ in range(6):
        bench.step()
    bench.finish(first)
    second = bench.add([*first.tokens, 9, 9])
    bench.step()
    assert second.cached_len == 8


def test_two_sequences_running_at_once_share_the_blocks_of_their_prefix() -> None:
    bench = Bench()
    bench.add(list(range(16)))
    bench.step()
    used = bench.scheduler.stats().blocks_used
    bench.add(list(range(16)))
    bench.step()
    assert bench.scheduler.stats().blocks_used == used + 2  # its last prompt block, and the first one's next


@pytest.mark.parametrize(
    "other",
    [{"cache_salt": "x"}, {"extra_keys": (("adapter", "a"),)}, {"extra_keys": (("adapter", "b"),)}],
)
def test_a_prefix_is_not_found_under_another_salt_or_key(other: dict[str, object]) -> None:
    bench = Bench()
    bench.add(list(range(12)), extra_keys=(("adapter", "c"),))
    bench.step()
    sequence = bench.add(list(range(12)), **other)
    bench.step()
    assert sequence.cached_len == 0


def test_a_sequence_that_must_not_reuse_computes_all_and_still_fills_the_cache() -> None:
    bench = Bench()
    bench.add(list(range(12)))
    bench.step()
    bench.add(list(range(12)), reuse_prefix=False)
    assert rows(bench.step())[1] == (1, 0, 12, True)
    reused = bench.add(list(range(12)))
    bench.step()
    assert reused.cached_len == 8


def test_without_a_prefix_cache_nothing_is_found_or_hashed() -> None:
    bench = Bench(prefix_cache=False)
    first = bench.add(list(range(12)))
    bench.step()
    second = bench.add(list(range(12)))
    bench.step()
    assert (second.cached_len, first.block_hashes, bench.scheduler.stats().blocks_cached) == (0, [], 0)


def test_forks_share_every_block_and_the_first_write_splits_only_the_last() -> None:
    bench = Bench()
    parent = bench.add([1, 2, 3, 4, 5, 6], seats=3)
    bench.step()
    children = [bench.fork(parent), bench.fork(parent)]
    assert all(child.blocks == parent.blocks for child in children)
    assert bench.scheduler.stats().blocks_used == 2
    step = bench.step()
    assert [kind for kind, _, _ in step.moves] == [MOVE_COPY, MOVE_COPY]
    assert len({sequence.blocks[1] for sequence in (parent, *children)}) == 3
    assert len({sequence.blocks[0] for sequence in (parent, *children)}) == 1
    assert bench.step().moves == ()


def test_a_fork_at_a_block_boundary_copies_nothing() -> None:
    bench = Bench()
    parent = bench.add([1, 2, 3, 4], seats=2)
    bench.step()
    bench.fork(parent)
    assert bench.step().moves == ()


def test_seats_are_kept_free_for_the_samples_to_come() -> None:
    bench = Bench(max_seqs=3)
    parent = bench.add([1, 2], seats=3)
    waiting = bench.add([3])
    bench.step()
    assert waiting.status is Status.WAITING
    bench.finish(parent)
    bench.step()
    assert waiting.status is Status.RUNNING


def test_a_fork_without_a_seat_is_refused_and_changes_nothing() -> None:
    bench = Bench(max_seqs=1)
    parent = bench.add([1, 2])
    bench.step()
    with pytest.raises(OverloadedError, match="max_seqs"):
        bench.fork(parent)
    bench.scheduler.check_invariants()
    assert bench.scheduler.stats().running == 1


def test_a_candidate_whose_whole_known_sequence_does_not_fit_stops_those_behind_it() -> None:
    bench = Bench(num_blocks=6)
    bench.add([1] * 8)
    bench.step()
    large, small = bench.add([2] * 16), bench.add([3])
    assert rows(bench.step()) == [(0, 8, 1, True)]
    assert (large.status, small.status) == (Status.WAITING, Status.WAITING)


def test_the_watermark_is_left_free_only_while_others_run() -> None:
    bench = Bench(num_blocks=6, watermark_blocks=3)
    first = bench.add([1] * 12)  # alone it may use nearly all
    second = bench.add([2] * 4)
    bench.step()
    assert (first.status, second.status) == (Status.RUNNING, Status.WAITING)
    bench.finish(first)
    bench.step()
    assert second.status is Status.RUNNING


def test_blocks_of_a_whole_prompt_are_reserved_when_its_first_chunk_runs() -> None:
    bench = Bench(budget_tokens=4)
    bench.add([1] * 16)
    bench.step()
    assert bench.scheduler.stats().blocks_used == 4


def test_blocks_without_cached_contents_are_used_up_before_cached_ones() -> None:
    bench = Bench(num_blocks=8)
    cached = bench.add(list(range(8)), room=1)
    bench.step()
    bench.finish(cached)
    for token in range(20, 30):
        bench.finish(bench.add([token] * 3))
        sequence = bench.add([token] * 3)
        bench.step()
        bench.finish(sequence)
    assert bench.scheduler.stats().evictions == 0


def test_cached_blocks_are_evicted_least_recently_used_first_and_tails_before_heads() -> None:
    bench = Bench(num_blocks=7)
    old, new = bench.add([1] * 8, room=0), bench.add([2] * 8, room=0)
    step = bench.scheduler.schedule(0.0)
    bench.scheduler.commit(step, 0.0)
    bench.finish(old, new)  # six blocks: two never used, then [old tail, old head, new tail, new head]
    big = bench.add([3] * 12, room=0)
    bench.scheduler.commit(bench.scheduler.schedule(0.0), 0.0)
    bench.finish(big)
    cached = bench.scheduler._tables.cached_len_of
    probe_old, probe_new = bench.add([1] * 9, room=0), bench.add([2] * 9, room=0)
    assert (cached(probe_old), cached(probe_new)) == (4, 8)


def test_the_same_calls_give_the_same_steps() -> None:
    def life() -> list[object]:
        bench = Bench(num_blocks=9, budget_tokens=7, tier_blocks=2)
        for length in range(1, 9):
            bench.add(list(range(length)), room=8)
        return [(rows(step), step.moves) for step in (bench.step() for _ in range(12))]

    assert life() == life()


def test_a_prefix_that_several_bring_at_once_is_computed_once() -> None:
    bench = Bench(num_blocks=65, budget_tokens=256)
    prefix = list(range(100, 124))
    for i in range(4):
        bench.add([*prefix, i, i])
    assert rows(bench.step()) == [(0, 0, 26, True)]
    assert rows(bench.step()) == [(0, 26, 1, True), *[(i, 24, 2, True) for i in (1, 2, 3)]]


def test_a_prefix_computed_in_chunks_is_waited_for_to_its_end() -> None:
    bench = Bench(num_blocks=65, budget_tokens=64, long_prefill_tokens=8)
    prefix = list(range(100, 124))
    bench.add([*prefix, 1])
    bench.add([*prefix, 2])
    computed = [rows(bench.step()) for _ in range(4)]
    assert [row for step in computed for row in step if row[0] == 1] == [(1, 24, 1, True)]


def test_a_prompt_that_has_nothing_in_common_does_not_wait() -> None:
    bench = Bench(num_blocks=65, budget_tokens=64)
    bench.add([1, 2, 3, 4, 5])
    bench.add([1, 2, 3, 4, 5, 6])
    bench.add([9, 9, 9, 9, 5])
    assert rows(bench.step()) == [(0, 0, 5, True), (2, 0, 5, True)]
    assert rows(bench.step()) == [(0, 5, 1, True), (2, 5, 1, True), (1, 4, 2, True)]


def test_a_prompt_that_waits_for_its_prefix_keeps_its_seat() -> None:
    bench = Bench(num_blocks=65, budget_tokens=64, max_seqs=2)
    bench.add([1, 2, 3, 4, 5])
    bench.add([1, 2, 3, 4, 5, 6])
    bench.add([9, 9, 9, 9, 5])
    assert rows(bench.step()) == [(0, 0, 5, True)]
    assert rows(bench.step()) == [(0, 5, 1, True), (1, 4, 2, True)]


def test_a_salt_keeps_a_prompt_from_waiting_for_what_it_could_not_share() -> None:
    bench = Bench(num_blocks=65, budget_tokens=64)
    bench.add([1, 2, 3, 4, 5])
    bench.add([1, 2, 3, 4, 5], cache_salt="x")
    assert rows(bench.step()) == [(0, 0, 5, True), (1, 0, 5, True)]


def test_without_a_prefix_cache_nobody_waits() -> None:
    bench = Bench(num_blocks=65, budget_tokens=64, prefix_cache=False)
    bench.add([1, 2, 3, 4, 5])
    bench.add([1, 2, 3, 4, 5])
    assert rows(bench.step()) == [(0, 0, 5, True), (1, 0, 5, True)]
