"""Engines that are killed, stopped and poisoned: every stream ends with the tokens of an undisturbed run."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from puna.engine import supervisor as module
from puna.engine.config import EngineConfig
from puna.engine.core import Engine
from puna.engine.params import EngineRequest
from puna.engine.structure import StructuredOutputs
from puna.engine.supervisor import Supervisor
from puna.errors import CulpritError, EngineError, OverloadedError
from tests.engine.driving import Sample, Samples, assert_same, prompt, request, run

Config = Callable[..., EngineConfig]
FAULTS = Path(__file__).parents[1] / "faults"
POISON = 299


@pytest.fixture
def make_config(tiny: Path) -> Config:
    """The native engine alone: it is the one that is served, and engines are started many times here."""

    def make(**options: Any) -> EngineConfig:
        defaults = {"kv_dtype": "bf16", "kv_bytes": 1 << 20, "max_seqs": 8, "budget_tokens": 64}
        return EngineConfig(model=str(tiny), **(defaults | options))

    return make


@pytest.fixture
def config(make_config: Config) -> EngineConfig:
    return make_config(kv_bytes=8 << 20, max_seqs=32)


def supervised(
    config: EngineConfig, scenario: Callable[[Supervisor], Coroutine[Any, Any, None]], **options: float
) -> None:
    async def play() -> None:
        supervisor = await Supervisor.start(config, **options)
        try:
            await asyncio.wait_for(scenario(supervisor), 100)
        finally:
            await supervisor.close()
        assert supervisor.state == "closed"

    asyncio.run(play())


def crowd(count: int, **changes: Any) -> list[EngineRequest]:
    """Half greedy, half sampled; some with several samples, some with penalties."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.2, "top_p": 0.9},
        {"temperature": 0.0, "repetition_penalty": 1.3},
        {"temperature": 1.0, "n": 3, "presence_penalty": 0.5},
    ]
    return [
        request(
            f"r{i}", prompt(5 + 7 * i, i), seed=i, **({"max_tokens": 90, "ignore_eos": True} | kinds[i % 4] | changes)
        )
        for i in range(count)
    ]


def undisturbed(config: EngineConfig, requests: list[EngineRequest]) -> Samples:
    engine = Engine(config)
    try:
        return run(engine, *requests)
    finally:
        engine.close()


async def collect(supervisor: Supervisor, one: EngineRequest, pause_s: float = 0.0) -> Samples:
    found: Samples = {}
    async for update in supervisor.generate(one):
        found.setdefault((update.request_id, update.index), Sample()).take(update)
        await asyncio.sleep(pause_s)
    return found


def assert_undisturbed(found: list[Samples], wanted: Samples) -> None:
    merged = {key: sample for samples in found for key, sample in samples.items()}
    assert merged.keys() == wanted.keys()
    for key, sample in merged.items():
        assert_same(sample, wanted[key], exact=True)


async def until_busy(supervisor: Supervisor, steps: int = 3) -> None:
    """Until the present engine has run some steps with requests in it, or there are none left."""
    while supervisor.state != "running" or supervisor.health().steps < steps:
        await asyncio.sleep(0.002)
        if not supervisor.health().live_requests:
            return


async def kill(supervisor: Supervisor) -> None:
    """Until the supervisor has seen it."""
    restarts = supervisor.restarts
    os.kill(supervisor.info.pid, signal.SIGKILL)
    while supervisor.state == "running" and supervisor.restarts == restarts:
        await asyncio.sleep(0.002)


def test_killed_again_and_again_nobody_notices(config: EngineConfig) -> None:
    requests = crowd(16)
    wanted = undisturbed(config, requests)

    async def scenario(supervisor: Supervisor) -> None:
        answers = [asyncio.create_task(collect(supervisor, one)) for one in requests]
        for number in range(5):
            await until_busy(supervisor, 3 + 4 * number)
            if all(answer.done() for answer in answers):
                break
            await kill(supervisor)
        assert_undisturbed(await asyncio.gather(*answers), wanted)
        assert supervisor.restarts >= 3
        assert supervisor.culprits == 0

    supervised(config, scenario)


def test_answers_that_have_a_form_go_on_in_another_engine(config: EngineConfig) -> None:
    form = StructuredOutputs(regex="([a-f]{3}[0-9]){20}")
    requests = [*crowd(4, structured_outputs=form), *crowd(8)[4:]]
    wanted = undisturbed(config, requests)
    assert any(sample.finish_reason == "stop" for sample in wanted.values())

    async def scenario(supervisor: Supervisor) -> None:
        answers = [asyncio.create_task(collect(supervisor, one)) for one in requests]
        for _ in range(3):
            while not any(supervisor._last.received(one.request_id) > 3 for one in requests[:4]):
                await asyncio.sleep(0.002)
                if all(answer.done() for answer in answers):
                    break
            await kill(supervisor)
        assert_undisturbed(await asyncio.gather(*answers), wanted)
        assert supervisor.culprits == 0

    supervised(config, scenario)


def test_an_engine_that_stands_still_is_replaced(config: EngineConfig) -> None:
    requests = crowd(8)
    wanted = undisturbed(config, requests)

    async def scenario(supervisor: Supervisor) -> None:
        answers = [asyncio.create_task(collect(supervisor, one)) for one in requests]
        await until_busy(supervisor)
        os.kill(supervisor.info.pid, signal.SIGSTOP)
        assert_undisturbed(await asyncio.gather(*answers), wanted)
        assert supervisor.restarts == 1

    supervised(config, scenario, hang_s=1.0)


def test_time_in_which_the_supervisor_did_not_run_itself_is_no_hang(config: EngineConfig) -> None:
    """A laptop that slept, or both processes stopped from outside."""
    requests = crowd(2)
    wanted = undisturbed(config, requests)

    async def scenario(supervisor: Supervisor) -> None:
        answers = [asyncio.create_task(collect(supervisor, one)) for one in requests]
        await until_busy(supervisor)
        pid = supervisor.health().pid
        os.kill(pid, signal.SIGSTOP)
        time.sleep(2.5)  # nothing of this process runs meanwhile
        await asyncio.sleep(0.1)  # now it does, and the engine not yet
        health = supervisor.health()
        assert health.alive
        assert 0.05 < health.stalled_s < 1
        os.kill(pid, signal.SIGCONT)
        assert_undisturbed(await asyncio.gather(*answers), wanted)
        assert supervisor.restarts == 0

    supervised(config, scenario, hang_s=1.0)


def test_an_idle_engine_that_is_stopped_is_replaced_when_it_is_needed(config: EngineConfig) -> None:
    requests = crowd(2)
    wanted = undisturbed(config, requests)

    async def scenario(supervisor: Supervisor) -> None:
        os.kill(supervisor.info.pid, signal.SIGSTOP)
        await asyncio.sleep(1.5)
        assert supervisor.restarts == 0, "an idle engine need not move"
        assert_undisturbed(await asyncio.gather(*(collect(supervisor, one) for one in requests)), wanted)

    supervised(config, scenario, hang_s=1.0)


@pytest.mark.parametrize("tokens", [0, 7])
def test_a_poisoned_request_fails_alone(config: EngineConfig, monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    requests = crowd(12)
    wanted = undisturbed(config, requests)
    poisoned = request("poison", [POISON, 5, 6], max_tokens=40, temperature=0.0, ignore_eos=True)
    monkeypatch.setenv("PUNA_FAULT", f"{POISON} {tokens}")
    monkeypatch.setenv("PYTHONPATH", f"{FAULTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    async def scenario(supervisor: Supervisor) -> None:
        answers = [asyncio.create_task(collect(supervisor, one)) for one in requests]
        with pytest.raises(CulpritError, match=r"SIGKILL.*is not tried again"):
            await collect(supervisor, poisoned)
        assert_undisturbed(await asyncio.gather(*answers), wanted)
        assert supervisor.culprits == 1
        assert supervisor.health().alive

    supervised(config, scenario)


def test_a_reader_that_stands_still_holds_up_no_trial(config: EngineConfig) -> None:
    requests = crowd(4, max_tokens=200)
    wanted = undisturbed(config, requests)

    async def scenario(supervisor: Supervisor) -> None:
        still = request("still", prompt(30, 9), max_tokens=200, ignore_eos=True)
        async with aclosing(supervisor.generate(still)) as it:
            first = await anext(it)
            assert first.token_ids
            answers = [asyncio.create_task(collect(supervisor, one)) for one in requests]
            for number in range(3):
                await until_busy(supervisor, 3 + 4 * number)
                assert not all(answer.done() for answer in answers)
                await kill(supervisor)
            assert_undisturbed(await asyncio.gather(*answers), wanted)
            assert supervisor.restarts >= 3
            assert not [update async for update in it if update.finish_reason == "error"]

    supervised(config, scenario)


@pytest.mark.parametrize("logprobs", [1, None])
def test_who_does_not_read_leaves_the_engine_and_goes_on_when_it_does(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch, logprobs: int | None
) -> None:
    monkeypatch.setattr(module, "UNREAD_UPDATES", 16)
    monkeypatch.setattr(module, "_LOOK_S", 0.001)
    wishes = {"max_tokens": 200, "ignore_eos": True, "temperature": 1.0, "n": 2, "seed": 5, "logprobs": logprobs}
    slow = request("slow", prompt(30, 9), **wishes)
    wanted = undisturbed(config, [slow])

    async def scenario(supervisor: Supervisor) -> None:
        found: Samples = {}
        async with aclosing(supervisor.generate(slow)) as updates:
            for _ in range(3):
                update = await anext(updates)
                found.setdefault((update.request_id, update.index), Sample()).take(update)
                while not supervisor.stats or supervisor.stats.live_requests:
                    await asyncio.sleep(0.001)
                assert supervisor.stats.scheduler.blocks_used == 0
                assert supervisor.stats.counters["generated_tokens"] < 400
            assert supervisor.health().live_requests == 1
            async for update in updates:
                found.setdefault((update.request_id, update.index), Sample()).take(update)
        assert_undisturbed([found], wanted)
        assert supervisor.restarts == 0

    supervised(config, scenario)


def test_engines_that_cannot_start_any_more_are_tried_ever_later(
    config: EngineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays, slept, sleep = (0.0, 0.011, 0.013, 0.017, 0.019), list[float](), asyncio.sleep

    async def slept_through(seconds: float) -> None:
        slept.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr(module, "DELAYS_S", delays)
    monkeypatch.setattr(asyncio, "sleep", slept_through)
    model = tmp_path / "model.gguf"
    model.write_bytes(Path(config.model).read_bytes())
    moved = tmp_path / "moved.gguf"

    async def scenario(supervisor: Supervisor) -> None:
        answer = asyncio.create_task(
            collect(supervisor, request("long", prompt(30, 1), max_tokens=220, ignore_eos=True))
        )
        await until_busy(supervisor)
        model.rename(moved)
        os.kill(supervisor.info.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="dies again and again"):
            await answer
        assert supervisor.state == "crash loop"
        assert [seconds for seconds in slept if seconds in delays[1:]][:3] == list(delays[1:4])
        assert not supervisor.health().alive
        with pytest.raises(EngineError, match="dies again and again"):
            await collect(supervisor, request("meanwhile", [5]))
        moved.rename(model)
        while supervisor.state != "running":
            await asyncio.sleep(0.01)
        assert (await collect(supervisor, request("later", [5])))["later", 0].finish_reason
        assert supervisor.health().alive

    supervised(
        EngineConfig(**{name: getattr(config, name) for name in config.__struct_fields__} | {"model": str(model)}),
        scenario,
    )


def test_while_there_is_no_engine_requests_queue_up_to_the_limit_and_no_further(
    make_config: Config,
) -> None:

    async def scenario(supervisor: Supervisor) -> None:
        os.kill(supervisor.info.pid, signal.SIGKILL)
        while supervisor.state == "running":
            await asyncio.sleep(0.001)
        answers = [asyncio.create_task(collect(supervisor, request(f"r{i}", [5 + i]))) for i in range(3)]
        await asyncio.sleep(0)
        assert supervisor.waiting == 2
        with pytest.raises(OverloadedError, match="2 requests wait for the engine"):
            await answers[2]
        for answer in answers[:2]:
            assert await answer

    supervised(make_config(max_waiting_seqs=2), scenario)


def test_who_was_admitted_is_not_refused_by_the_next_engine(make_config: Config) -> None:
    config = make_config(max_seqs=2, max_waiting_seqs=1)
    requests = [request(f"r{i}", prompt(9, i), seed=i, max_tokens=240, ignore_eos=True) for i in range(3)]
    wanted = undisturbed(make_config(max_seqs=2), requests)

    async def scenario(supervisor: Supervisor) -> None:
        answers = []
        for one in requests:
            answers.append(asyncio.create_task(collect(supervisor, one)))
            while not (stats := supervisor.stats) or (stats.scheduler.running, stats.live_requests) != (
                min(len(answers), 2),
                len(answers),
            ):
                await asyncio.sleep(0.001)
        os.kill(supervisor.info.pid, signal.SIGKILL)
        assert_undisturbed(await asyncio.gather(*answers), wanted)
        assert supervisor.restarts == 1

    supervised(config, scenario)
