"""The engine under a real server is killed, stopped and poisoned; clients over HTTP see no more than a pause."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from puna.engine.trials import SUSPECT_ANYWAY_DEATHS, VAIN_DEATHS
from tests.server.process import ServerProcess

FAULTS = Path(__file__).parents[1] / "faults"
STREAMS = 32


@pytest.fixture(scope="module")
def server(patient_model: Path) -> Iterator[ServerProcess]:
    running = ServerProcess.start(
        str(patient_model), "--name", "tiny", "--kv-gib", "0.05", "--max-seqs", "32", "--hang", "2"
    )
    yield running
    running.kill()


def bodies() -> list[dict[str, Any]]:
    """Half greedy, half sampled, with a stop string here and there."""
    return [
        {
            "prompt": f"question {i}: " + "why " * i,
            "max_tokens": 1500,
            "ignore_eos": True,
            "seed": i,
            "temperature": float(i % 2),
            "stop": ["zz"] if i % 5 == 0 else None,
            "stream": i % 4 != 3,
        }
        for i in range(STREAMS)
    ]


def ask(server: ServerProcess, body: dict[str, Any]) -> tuple[str, str]:
    """Text and finish reason. An error of any kind raises."""
    body = {key: value for key, value in body.items() if value is not None}
    if not body["stream"]:
        response = server.post("/v1/completions", body)
        assert response.status_code == 200, response.text
        choice = response.json()["choices"][0]
        return choice["text"], choice["finish_reason"]
    text, reason = "", ""
    for event in server.events("/v1/completions", body)[:-1]:
        assert "error" not in event, event
        for choice in event["choices"]:
            text += choice["text"]
            reason = choice["finish_reason"] or reason
    return text, reason


def ask_all(server: ServerProcess, disturb: Callable[[], bool], every_s: float) -> list[tuple[str, str]]:
    """All at once. `disturb` is called again and again until it says False."""
    with concurrent.futures.ThreadPoolExecutor(STREAMS) as pool:
        asked = [pool.submit(ask, server, body) for body in bodies()]
        while not all(one.done() for one in asked) and disturb():
            concurrent.futures.wait(asked, timeout=every_s)
        return [one.result(timeout=100) for one in asked]


def wait_until_it_moves(server: ServerProcess) -> int:
    """The pid of an engine that has run steps."""
    while httpx.get(f"{server.url}/ready", verify=False).status_code != 200 or server.health()["engine"]["steps"] < 3:
        time.sleep(0.01)
    return server.engine_pid


@pytest.fixture(scope="module")
def wanted(server: ServerProcess) -> list[tuple[str, str]]:
    return ask_all(server, lambda: False, 0.0)


def test_a_killed_engine_is_no_more_than_a_pause(server: ServerProcess, wanted: list[tuple[str, str]]) -> None:
    kills = iter(range(4))

    def kill() -> bool:
        os.kill(wait_until_it_moves(server), signal.SIGKILL)
        return next(kills, None) is not None

    before = server.health()["engine"]["restarts"]
    assert ask_all(server, kill, 0.1) == wanted
    assert server.health()["engine"]["restarts"] >= before + 2
    assert server.wait_until_idle()["restarts"] >= 2


def test_a_stopped_engine_is_told_by_health_and_then_replaced(
    server: ServerProcess, wanted: list[tuple[str, str]]
) -> None:
    seen: list[int] = []
    stopped: list[float] = []
    told: list[float] = []  # by the server's own clock, on which time that it did not run itself does not count

    def stop_once() -> bool:
        if not stopped:
            os.kill(wait_until_it_moves(server), signal.SIGSTOP)
            stopped.append(time.monotonic())
        health = httpx.get(f"{server.url}/health", verify=False)
        if health.status_code == 503:
            told.append(float(health.json()["reason"].removeprefix("work has not moved for ").removesuffix(" s")))
            seen.append(httpx.get(f"{server.url}/ready", verify=False).status_code)
        return not seen

    assert ask_all(server, stop_once, 0.05) == wanted
    assert seen == [503]
    assert told[0] <= 2
    assert httpx.get(f"{server.url}/health", verify=False).status_code == 200
    assert httpx.get(f"{server.url}/ready", verify=False).json() == {"status": "ready"}


def test_a_poisoned_request_gets_a_500_and_the_others_their_answers(
    patient_model: Path, wanted: list[tuple[str, str]]
) -> None:
    env = {"PUNA_FAULT": "299 3", "PYTHONPATH": f"{FAULTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    ill = ServerProcess.start(str(patient_model), "--name", "tiny", "--kv-gib", "0.05", "--max-seqs", "33", env=env)
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            poisoned = pool.submit(
                ill.post, "/v1/completions", {"prompt": [299, 5, 6], "max_tokens": 40, "ignore_eos": True}
            )
            assert ask_all(ill, lambda: False, 0.0) == wanted
            response = poisoned.result(timeout=60)
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "request_ends_engine"
        assert ill.wait_until_idle()["restarts"] <= SUSPECT_ANYWAY_DEATHS + VAIN_DEATHS
    finally:
        ill.kill()
