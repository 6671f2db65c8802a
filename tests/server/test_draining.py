"""The end of a server under load: it goes on listening, refuses new work, and lets running answers end."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.process import ServerProcess, is_running

TEXT: dict[str, Any] = {"prompt": "hi", "ignore_eos": True, "stream": True}


def start(model: Path, drain_s: str) -> ServerProcess:
    return ServerProcess.start(str(model), "--backend", "reference", "--name", "tiny", "--drain", drain_s)


@pytest.fixture(params=["60"])
def server(patient_model: Path, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    running = start(patient_model, request.param)
    yield running
    running.kill()


def wait_until_it_drains(server: ServerProcess) -> httpx.Response:
    deadline = time.monotonic() + 10
    while (response := httpx.get(f"{server.url}/ready", verify=False)).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return response


def test_a_stream_ends_while_new_work_is_refused_and_the_server_exits_with_0(server: ServerProcess) -> None:
    engine = server.engine_pid
    url = f"{server.url}/v1/completions"
    with (
        httpx.Client(verify=False) as kept,
        httpx.stream("POST", url, json={**TEXT, "max_tokens": 1500}, timeout=60, verify=False) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        kept.get(f"{server.url}/version")
        server.process.send_signal(signal.SIGTERM)
        ready = wait_until_it_drains(server)
        assert (ready.status_code, ready.json()["status"]) == (503, "draining")
        assert "retry-after" in ready.headers
        for client in (kept, httpx):  # on a connection of before, and on a new one
            refused = client.post(url, json=TEXT)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert httpx.get(f"{server.url}/health", verify=False).status_code == 200
        said = [line for line in lines if line]
    assert '"finish_reason":"length"' in said[-2]
    assert said[-1] == "data: [DONE]"
    assert server.process.wait(timeout=30) == 0
    assert not is_running(engine)


def test_a_second_signal_ends_it_at_once_and_says_so_to_the_client(server: ServerProcess) -> None:
    with httpx.stream(
        "POST", f"{server.url}/v1/completions", json={**TEXT, "max_tokens": 16000}, timeout=60, verify=False
    ) as stream:
        lines = stream.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGINT)
        wait_until_it_drains(server)
        server.process.send_signal(signal.SIGTERM)
        said = [line for line in lines if line]
    assert '"error"' in said[-2]
    assert said[-1] == "data: [DONE]"
    assert server.process.wait(timeout=30) == 0


def test_what_runs_longer_than_the_drain_is_ended_with_an_error_event(patient_model: Path) -> None:
    server = start(patient_model, "0.5")
    try:
        url, body = f"{server.url}/v1/completions", {**TEXT, "max_tokens": 16000}
        with httpx.stream("POST", url, json=body, timeout=60, verify=False) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            said = [line for line in lines if line]
        assert '"error"' in said[-2]
        assert said[-1] == "data: [DONE]"
        assert server.process.wait(timeout=30) == 0
    finally:
        server.kill()
