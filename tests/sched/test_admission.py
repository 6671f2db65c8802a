"""Who is refused, and what the refusal says."""

from __future__ import annotations

import pytest

from puna.errors import InputError, MemoryBudgetError, OverloadedError
from puna.sched.config import SchedulerConfig
from puna.sched.fcfs import Fcfs
from puna.sched.scheduler import Scheduler

from .fake_kv import make_sequence


def scheduler(**limits: int) -> Scheduler:
    return Scheduler(SchedulerConfig(**{"num_blocks": 5, "max_model_len": 64, "block_size": 4, **limits}), Fcfs())


def test_what_can_never_fit_is_refused_with_the_blocks_it_needs_and_a_remedy() -> None:
    with pytest.raises(MemoryBudgetError, match=r"need 5 KV blocks .* holds 4 .*max_tokens to at most 13.*num_blocks"):
        scheduler().add(make_sequence(0, [1] * 3, 20), 0.0)
    with pytest.raises(MemoryBudgetError, match=r"shorten the prompt"):
        scheduler().add(make_sequence(0, [1] * 30, 31), 0.0)


def test_what_just_fits_runs_to_its_last_token() -> None:
    busy = scheduler()
    sequence = make_sequence(0, [1] * 3, 16)
    busy.add(sequence, 0.0)
    while sequence.total_len < 16:
        step = busy.schedule(0.0)
        busy.commit(step, 0.0)
        busy.append(sequence, 1, 0.0)
    step = busy.schedule(0.0)
    assert [row.completes for row in step.rows] == [True]
    busy.commit(step, 0.0)
    with pytest.raises(ValueError, match="as long as it may get"):
        busy.append(sequence, 1, 0.0)


@pytest.mark.parametrize(
    ("tokens", "longest", "seats", "param"),
    [([], 4, 1, "prompt"), ([1] * 5, 4, 1, "prompt"), ([1], 65, 1, "max_tokens"), ([1], 4, 9, "n"), ([1], 4, 0, "n")],
)
def test_an_impossible_wish_names_its_field(tokens: list[int], longest: int, seats: int, param: str) -> None:
    with pytest.raises(InputError) as caught:
        scheduler(max_seqs=8).add(make_sequence(0, tokens, longest, seats=seats), 0.0)
    assert caught.value.param == param


def test_a_full_queue_refuses_with_a_hint_that_follows_the_pace_of_exits() -> None:
    busy = scheduler(max_waiting_seqs=2)
    for number in range(40):
        busy.add(make_sequence(number, [1], 4), float(number))
        busy.abort(busy._waiting[0], 20.0 * number)
    busy.add(make_sequence(100, [1], 4), 0.0)
    busy.add(make_sequence(101, [1], 4), 0.0)
    with pytest.raises(OverloadedError, match="max_waiting_seqs") as caught:
        busy.add(make_sequence(102, [1], 4), 0.0)
    assert 10.0 < caught.value.retry_after_s <= 20.0
    assert busy.stats().waiting == 2


def test_a_queue_of_tokens_refuses_when_full_but_takes_any_one_when_empty() -> None:
    busy = scheduler(max_waiting_tokens=5)
    busy.add(make_sequence(0, [1] * 8, 12), 0.0)
    with pytest.raises(OverloadedError, match="max_waiting_tokens"):
        busy.add(make_sequence(1, [1], 4), 0.0)


def test_an_id_in_use_is_refused() -> None:
    busy = scheduler()
    busy.add(make_sequence(0, [1], 4), 0.0)
    with pytest.raises(ValueError, match="id is in use"):
        busy.add(make_sequence(0, [1], 4), 0.0)


@pytest.mark.parametrize("field", ["num_blocks", "block_size", "budget_tokens", "tier_blocks"])
def test_a_limit_out_of_range_is_named(field: str) -> None:
    with pytest.raises(InputError, match=f"{field} is -1"):
        scheduler(**{field: -1})
