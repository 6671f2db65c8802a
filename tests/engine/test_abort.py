"""A request can be ended in every state, and nothing of it stays behind (`make_engine` checks that at the end)."""

from __future__ import annotations

import pytest

from puna.sched.sequence import Status
from tests.engine.conftest import EngineMaker
from tests.engine.driving import Samples, finish, prompt, request, run


def used(engine: object) -> tuple[int, int, int, int]:
    stats = engine.scheduler.stats()  # type: ignore[attr-defined]
    return stats.blocks_used, stats.waiting, stats.running, stats.swapped


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_an_abort_at_any_time_frees_everything(make_engine: EngineMaker, steps: int) -> None:
    engine = make_engine(budget_tokens=30)
    engine.add(request("r", prompt(50, 1), n=3, ignore_eos=True, max_tokens=20))
    finish(engine, steps=steps)
    engine.abort("r")
    assert not engine.has_work
    assert used(engine) == (0, 0, 0, 0)
    engine.abort("r")
    assert list(engine.step()) == []


def test_a_swapped_request_can_be_aborted(make_engine: EngineMaker) -> None:
    probe = make_engine()
    block_bytes = probe.config.kv_bytes // probe.backend.memory.kv.num_blocks
    engine = make_engine(kv_bytes=block_bytes * 10, max_model_len=128, swap_bytes=1 << 20)
    for i in range(4):
        engine.add(request(f"r{i}", prompt(30, i), ignore_eos=True, max_tokens=60))
    swapped: list[str] = []
    while not swapped:
        engine.step()
        swapped = [
            name
            for name, live in engine._live.items()
            if any(stream.sequence.status is Status.SWAPPED for stream in live.streams)
        ]
    for name in swapped:
        engine.abort(name)
    assert engine.scheduler.stats().swapped == 0
    rest = finish(engine)
    assert {sample.finish_reason for sample in rest.values()} == {"length"}


def test_one_sample_of_several_can_be_aborted_and_the_others_do_not_notice(make_engine: EngineMaker) -> None:
    engine = make_engine()
    wanted = run(engine, request("r", prompt(20, 1), n=3, ignore_eos=True))
    for victim in range(3):
        engine.add(request("r", prompt(20, 1), n=3, ignore_eos=True))
        found: Samples = finish(engine, steps=4)
        engine.abort("r", victim)
        finish(engine, found)
        for (_, index), sample in found.items():
            kept = wanted["r", index].tokens
            assert sample.tokens == (kept[:4] if index == victim else kept)


@pytest.mark.parametrize("victim", range(3))
def test_a_sample_can_be_aborted_before_the_prompt_is_computed(make_engine: EngineMaker, victim: int) -> None:
    engine = make_engine()
    wanted = run(engine, request("r", prompt(20, 1), n=3))
    engine.add(request("r", prompt(20, 1), n=3))
    engine.abort("r", victim)
    found = finish(engine)
    assert {index for _, index in found} == {0, 1, 2} - {victim}
    for key, sample in found.items():
        assert sample.tokens == wanted[key].tokens


def test_an_aborted_request_gives_its_place_to_the_next(make_engine: EngineMaker) -> None:
    engine = make_engine(max_seqs=1)
    engine.add(request("first", prompt(20, 1), ignore_eos=True, max_tokens=50))
    engine.add(request("second", prompt(20, 2)))
    finish(engine, steps=3)
    engine.abort("first")
    assert {name for name, _ in finish(engine)} == {"second"}


def test_a_thousand_requests_with_aborts_leave_nothing(make_engine: EngineMaker) -> None:
    engine = make_engine(max_waiting_seqs=2000)
    for i in range(1000):
        engine.add(request(f"r{i}", prompt(1 + i % 7, i % 11), n=1 + i % 3, max_tokens=1 + i % 4, logprobs=None))
    step = 0
    while engine.has_work:
        engine.step()
        step += 1
        engine.abort(f"r{step * 7 % 1000}")
    assert used(engine) == (0, 0, 0, 0)
    assert sum(engine.counters.finished.values()) == sum(1 + i % 3 for i in range(1000))
