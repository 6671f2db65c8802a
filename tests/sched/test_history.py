"""Where history costs, chunks of a long prompt get shorter the further it is, and nobody is kept from getting on."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from puna.sched.draft import LEAST_CHUNK, even_part
from puna.sched.step import ScheduledStep

from .bench import Bench, rows

BUDGET, HISTORY = 64, 100


def long_bench(**config: int) -> Bench:
    more = {"budget_tokens": BUDGET, "history_tokens": HISTORY, "max_model_len": 4000} | config
    return Bench(num_blocks=1100, **more)


def work(step: ScheduledStep) -> int:
    return sum(HISTORY + position for row in step.rows for position in range(row.start, row.start + row.count))


def test_no_step_costs_more_than_the_first_until_chunks_are_as_short_as_they_may_get() -> None:
    bench = long_bench()
    bench.add(list(range(1500)))
    counts = []
    while sum(counts) < 1500:
        step = bench.step()
        counts.append(step.rows[0].count)
        assert work(step) <= BUDGET * HISTORY or step.tokens <= LEAST_CHUNK
    assert counts[:-1] == sorted(counts[:-1], reverse=True)
    assert (counts[0], counts[-2]) == (48, LEAST_CHUNK)


def test_without_a_price_of_history_every_chunk_is_the_budget() -> None:
    bench = long_bench(history_tokens=0)
    bench.add(list(range(1000)))
    assert {bench.step().tokens for _ in range(15)} == {BUDGET}


def test_decodes_are_all_served_however_long_their_histories_are() -> None:
    bench = long_bench()
    for first in range(6):
        bench.add([first, *range(400)], room=400)
    for _ in range(400):
        step = bench.step()
        if all(row.completes and row.count == 1 for row in step.rows) and len(step.rows) == 6:
            break
    assert [row.count for row in bench.step().rows] == [1] * 6


def test_a_prompt_gets_on_beside_decodes_that_cost_more_than_a_whole_step() -> None:
    bench = long_bench(budget_tokens=20)
    for first in range(10):
        bench.add([first, *range(300)], room=400)
    while len(step := bench.step().rows) < 10 or any(row.count > 1 for row in step):
        pass
    bench.add([99, *range(200)])
    counts = [count for number, _, count, _ in rows(bench.step()) if number == 10]
    assert counts == [10]  # all that ten decodes leave of the budget


def test_of_two_long_prompts_the_first_is_computed_first() -> None:
    bench = long_bench()
    for first in range(2):
        bench.add([first, *range(1000)])
    served = [number for _ in range(80) for number, _, count, _ in rows(bench.step()) if count > 1]
    assert served == sorted(served)
    assert set(served) == {0, 1}


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    budget=st.integers(1, 80),
    history=st.integers(1, 200),
)
def test_every_prompt_ends(lengths: list[int], budget: int, history: int) -> None:
    bench = long_bench(budget_tokens=budget, history_tokens=history)
    for number, length in enumerate(lengths):
        bench.add([1000 + number, *range(length)], room=3)
    for _ in range(40 * sum(lengths)):
        if not bench.step().rows:
            break
    stats = bench.scheduler.stats()
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)


@given(st.integers(1, 20_000), st.integers(512, 4_000))
def test_parts_are_whole_nearly_equal_and_no_larger_than_they_may_be(wanted: int, most: int) -> None:
    parts = []
    while wanted > 0:
        parts.append(even_part(wanted, most))
        wanted -= parts[-1]
        assert 0 < parts[-1] <= most * 9 / 8
        assert wanted >= 0
    assert all(part % 256 == 0 for part in parts[:-1])
    assert max(parts) - min(parts[:-1], default=parts[0]) <= 256
