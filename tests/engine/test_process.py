"""The engine in its own process: the same answers, errors that arrive, a truthful health, and no orphan."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from puna.engine.client import EngineClient, describe_exit
from puna.engine.config import EngineConfig
from puna.engine.core import Engine
from puna.engine.messages import (
    BOARD_BYTES,
    Abort,
    Failed,
    FromEngine,
    Refused,
    Stepped,
    Stop,
    as_error,
    frame,
    kind_of,
)
from puna.engine.news import StepNews
from puna.engine.params import EngineRequest
from puna.engine.process import _serve
from puna.errors import EngineError, InputError, ModelNotFoundError, OverloadedError
from tests.engine.driving import Sample, Samples, prompt, request, run

Config = Callable[..., EngineConfig]
ROOT = Path(__file__).parents[2]


def with_client(config: EngineConfig, scenario: Callable[[EngineClient], Coroutine[Any, Any, None]]) -> None:
    """Runs `scenario` against a fresh engine process; afterwards the process is gone."""

    async def play() -> int:
        client = await EngineClient.start(config)
        try:
            await asyncio.wait_for(scenario(client), 60)
        finally:
            await client.close()
        return client.info.pid

    pid = asyncio.run(play())
    assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path(f"/proc/{pid}").exists() else True


async def collect(client: EngineClient, one: EngineRequest) -> Samples:
    found: Samples = {}
    async for update in client.generate(one):
        found.setdefault((update.request_id, update.index), Sample()).take(update)
    return found


async def until_idle(client: EngineClient) -> None:
    """Until the engine says that nothing is held."""
    while client.stats is None or client.stats.live_requests or client.stats.scheduler.blocks_used:
        await asyncio.sleep(0.01)


def test_answers_are_those_of_an_engine_in_this_process(make_config: Config) -> None:
    config = make_config()
    requests = [
        request(f"r{i}", prompt(10 + 9 * i, i), n=1 + i % 3, seed=i, prompt_logprobs=1 if i == 2 else None)
        for i in range(6)
    ]
    engine = Engine(config)
    wanted = run(engine, *requests)
    engine.close()

    async def scenario(client: EngineClient) -> None:
        found: Samples = {}
        for answers in await asyncio.gather(*(collect(client, one) for one in requests)):
            found |= answers
        assert found.keys() == wanted.keys()
        for key, sample in found.items():
            assert sample.tokens == wanted[key].tokens
            assert (sample.prompt_logprobs is None) == (wanted[key].prompt_logprobs is None)
        await until_idle(client)

    with_client(config, scenario)


def test_one_message_a_step_brings_the_news_of_all_requests(
    make_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought: list[int] = []
    hand_out = EngineClient._hand_out

    def counted(self: EngineClient, message: Stepped) -> None:
        news = len(message.updates) + sum(token >= 0 for token in message.tokens)
        if news:
            brought.append(news)
        hand_out(self, message)

    monkeypatch.setattr(EngineClient, "_hand_out", counted)
    requests = [request(f"r{i}", prompt(10, i), max_tokens=30, ignore_eos=True) for i in range(8)]

    async def scenario(client: EngineClient) -> None:
        await asyncio.gather(*(collect(client, one) for one in requests))
        await until_idle(client)
        assert client.stats is not None
        assert sum(brought) == 8 * 30
        assert len(brought) <= client.stats.counters["steps"]

    with_client(make_config(max_seqs=8), scenario)


def test_the_engine_tells_of_itself_when_it_is_ready(make_config: Config) -> None:
    async def scenario(client: EngineClient) -> None:
        info = client.info
        assert (info.vocab_size, info.max_model_len) == (300, 256)
        assert info.pid != os.getpid()
        assert info.fingerprint
        assert info.config.budget_tokens == 64
        assert [line.name for line in info.memory][:3] == ["weights", "working space", "keys and values"]

    with_client(make_config(), scenario)


def test_what_the_door_refuses_is_raised_again_with_its_field(make_config: Config) -> None:
    async def scenario(client: EngineClient) -> None:
        with pytest.raises(InputError) as caught:
            await collect(client, request("r", [999]))
        assert caught.value.param == "prompt"
        requests = [collect(client, long(f"r{i}")) for i in range(12)]
        results = await asyncio.gather(*requests, return_exceptions=True)
        refused = [result for result in results if isinstance(result, OverloadedError)]
        served = [result for result in results if isinstance(result, dict)]
        assert len(refused) + len(served) == 12
        assert all(error.retry_after_s > 0 for error in refused)
        assert refused
        assert served

    with_client(make_config(max_seqs=1, max_waiting_seqs=1), scenario)


def long(request_id: str, **params: Any) -> EngineRequest:
    return request(request_id, prompt(20, 1), max_tokens=230, ignore_eos=True, logprobs=None, **params)


def test_closing_the_iterator_ends_the_request_in_the_engine(make_config: Config) -> None:
    async def scenario(client: EngineClient) -> None:
        updates = client.generate(long("r", n=2))
        async for _ in updates:
            break
        await updates.aclose()
        await until_idle(client)
        assert client.health().live_requests == 0
        assert (await collect(client, request("r", [5], max_tokens=1)))["r", 0].tokens

    with_client(make_config(), scenario)


def test_who_leaves_during_a_step_has_no_block_after_the_next(
    make_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(make_config())
    inbox: queue.Queue[Any] = queue.Queue()
    for number, name in enumerate(("stays", "leaves")):
        inbox.put(request(name, prompt(20, number), max_tokens=200, ignore_eos=True))
    step, held = engine.step, list[tuple[int, int]]()

    def watched() -> StepNews:
        news = step()
        figures = engine.stats()
        held.append((figures.live_requests, figures.scheduler.blocks_used))
        if len(held) == 5:
            inbox.put(Abort("leaves"))
        if len(held) == 8:
            inbox.put(Stop())
        return news

    monkeypatch.setattr(engine, "step", watched)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        _serve(engine, ours, inbox, memoryview(bytearray(BOARD_BYTES)).cast("q"))
    assert [live for live, _ in held] == [2] * 5 + [1] * 3
    assert [blocks for _, blocks in held[5:]] == [held[4][1] // 2] * 3


def test_a_cancelled_task_ends_its_request(make_config: Config) -> None:
    async def scenario(client: EngineClient) -> None:
        task = asyncio.create_task(collect(client, long("r")))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until_idle(client)

    with_client(make_config(), scenario)


def test_one_sample_can_be_aborted_and_the_others_go_on(make_config: Config) -> None:
    async def scenario(client: EngineClient) -> None:
        found: Samples = {}
        async for update in client.generate(long("r", n=3)):
            sample = found.setdefault(("r", update.index), Sample())
            sample.take(update)
            if update.index == 1 and len(sample.tokens) == 2:
                await client.abort("r", 1)
        assert {index: sample.finish_reason for (_, index), sample in found.items()} == {
            0: "length",
            1: "abort",
            2: "length",
        }
        await until_idle(client)

    with_client(make_config(), scenario)


def test_an_engine_that_is_killed_ends_every_stream_with_its_exit_code(make_config: Config) -> None:
    async def scenario(client: EngineClient) -> None:
        tasks = [asyncio.create_task(collect(client, long(f"r{i}"))) for i in range(3)]
        while not client.health().steps:
            await asyncio.sleep(0.001)
        os.kill(client.info.pid, signal.SIGKILL)
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, EngineError)
            assert "SIGKILL" in str(result)
            assert "-9" in str(result)
        health = client.health()
        assert (health.alive, health.exit_code) == (False, -9)
        with pytest.raises(EngineError, match="SIGKILL"):
            await collect(client, request("later", [5]))

    with_client(make_config(), scenario)


def test_health_counts_steps_and_tells_a_stopped_engine_from_a_working_one(
    make_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puna.engine.client.UNHEALTHY_S", 0.4)

    async def scenario(client: EngineClient) -> None:
        idle = client.health()
        assert idle.alive
        assert not idle.in_step
        names = [f"r{i}" for i in range(30)]
        tasks = [asyncio.create_task(collect(client, long(name, n=8))) for name in names]
        while client.health().steps < 3:
            await asyncio.sleep(0.001)
        assert client.health().progress > idle.progress
        for _ in range(200):  # stop it inside a step
            os.kill(client.info.pid, signal.SIGSTOP)
            await asyncio.sleep(0.01)
            if client.health().in_step:
                break
            os.kill(client.info.pid, signal.SIGCONT)
            await asyncio.sleep(0.003)
        assert client.health().in_step
        assert client.health().alive, "a step may take its time"
        await asyncio.sleep(0.5)
        assert not client.health().alive
        assert client.health().stalled_s >= 0.4
        os.kill(client.info.pid, signal.SIGCONT)
        for name in names:
            await client.abort(name)
        await asyncio.gather(*tasks)
        await until_idle(client)
        assert client.health().alive

    with_client(make_config(), scenario)


def test_closing_lets_live_requests_finish_if_asked_to(make_config: Config) -> None:
    async def play() -> None:
        client = await EngineClient.start(make_config())
        task = asyncio.create_task(collect(client, request("r", [5], ignore_eos=True, max_tokens=50)))
        await asyncio.sleep(0)
        await client.close(drain_s=60)
        assert len((await task)["r", 0].tokens) == 50
        await client.close()

    asyncio.run(play())


def test_closing_at_once_raises_in_live_streams(make_config: Config) -> None:
    async def play() -> None:
        client = await EngineClient.start(make_config())
        updates = client.generate(long("r", n=8))
        await anext(updates)
        await client.close()
        with pytest.raises(EngineError, match="closed"):
            async for _ in updates:
                pass
        assert not alive(client.info.pid)

    asyncio.run(play())


def test_a_start_that_fails_is_the_engines_own_error(make_config: Config, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        asyncio.run(EngineClient.start(EngineConfig(model=str(tmp_path / "missing.gguf"))))
    with pytest.raises(InputError) as caught:
        asyncio.run(EngineClient.start(make_config(max_model_len=10_000)))
    assert caught.value.param == "max_model_len"


PARENT = """
import asyncio, sys, time
from puna.engine.client import EngineClient
from puna.engine.config import EngineConfig

async def main():
    client = await EngineClient.start(EngineConfig(model=sys.argv[1], backend="reference", kv_bytes=1 << 20))
    print(client.info.pid, flush=True)
    time.sleep(60)

asyncio.run(main())
"""


def test_the_engine_ends_when_its_parent_is_killed(tiny: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tiny)], stdout=subprocess.PIPE, env=environment)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
    finally:
        parent.kill()
        parent.wait()
    until = time.monotonic() + 20
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive(pid)


def test_importing_the_client_does_not_load_a_model_library() -> None:
    code = "import sys, puna.engine.client; print('jinja2' in sys.modules, 'tokenizers' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "False False\n"


@pytest.mark.parametrize(
    "error", [InputError("no", param="n"), OverloadedError("full", retry_after_s=3.0), EngineError("x")]
)
def test_errors_keep_their_class_and_fields_on_the_wire(error: Exception) -> None:
    import msgspec

    retry, param = getattr(error, "retry_after_s", None), getattr(error, "param", None)
    message = Refused(1, "r", kind_of(error), str(error), param, retry)  # type: ignore[arg-type]
    arrived = msgspec.msgpack.decode(frame(message)[4:], type=FromEngine)
    assert isinstance(arrived, Refused | Failed)
    again = as_error(arrived)
    assert (type(again), str(again)) == (type(error), str(error))
    assert (getattr(again, "retry_after_s", None), getattr(again, "param", None)) == (retry, param)


def test_exit_codes_are_put_into_words() -> None:
    assert describe_exit(-9).startswith("was killed by SIGKILL (exit code -9")
    assert describe_exit(1) == "ended with exit code 1"
