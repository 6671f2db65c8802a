"""A server from start to end: readiness, keys, clients that leave, an engine that dies, signals."""

from __future__ import annotations

import concurrent.futures
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import puna
from tests.server.process import ServerProcess, is_running

LONG: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 16000,
    "ignore_eos": True,
    "stream": True,
}


@pytest.fixture
def own_server(patient_model: Path) -> Iterator[ServerProcess]:
    running = ServerProcess.start(str(patient_model), "--name", "tiny", "--backend", "reference", "--drain", "1")
    yield running
    running.kill()


@pytest.fixture(scope="module")
def left_server(patient_model: Path) -> Iterator[ServerProcess]:
    """For tests that only leave it."""
    running = ServerProcess.start(str(patient_model), "--name", "tiny", "--backend", "reference")
    yield running
    running.kill()


def test_the_ready_line_names_the_model_and_the_real_port(server: ServerProcess) -> None:
    (ready,) = (line for line in server.lines if line.startswith("Puna serves "))
    assert ready.startswith("Puna serves tiny at http://127.0.0.1:")
    assert not server.url.endswith(":0")
    assert httpx.get(f"{server.url}/version", verify=False).json() == {"version": puna.__version__}


def test_health_is_true_and_open(server: ServerProcess) -> None:
    response = httpx.get(f"{server.url}/health", verify=False)
    assert response.status_code == 200
    assert response.json()["status"] == "ok"
    assert is_running(server.engine_pid)


def test_unless_told_otherwise_no_page_of_another_origin_may_ask(server: ServerProcess) -> None:
    origin = {"origin": "https://page.example"}
    asked = httpx.options(
        f"{server.url}/v1/completions", headers={**origin, "access-control-request-method": "POST"}, verify=False
    )
    assert asked.status_code == 405
    for response in (asked, httpx.get(f"{server.url}/v1/models", headers=origin, verify=False)):
        assert not [name for name in response.headers if name.startswith("access-control-")]


def test_the_served_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "puna"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_with_a_key_only_those_who_know_it_come_in(tiny_model: Path) -> None:
    keyed = ServerProcess.start(str(tiny_model), "--backend", "reference", "--name", "tiny", env={"PUNA_API_KEY": "k1"})
    try:
        url = f"{keyed.url}/v1"
        with pytest.raises(openai.AuthenticationError) as caught:
            openai.OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list()
        assert caught.value.code == "invalid_api_key"
        assert httpx.get(f"{url}/models", verify=False).status_code == 401
        assert [m.id for m in openai.OpenAI(base_url=url, api_key="k1").models.list()] == ["tiny"]
        assert httpx.get(f"{keyed.url}/health", verify=False).status_code == 200
    finally:
        keyed.kill()


def test_a_client_that_leaves_a_stream_frees_its_blocks(left_server: ServerProcess) -> None:
    with httpx.stream(
        "POST", f"{left_server.url}/v1/chat/completions", json={**LONG, "n": 4}, timeout=60, verify=False
    ) as response:
        lines = response.iter_lines()
        next(lines)
        assert left_server.health()["engine"]["live_requests"] == 1
    figures = left_server.wait_until_idle()
    assert figures["finished_abort"] == 4
    assert figures["finished_length"] == 0


def test_a_client_that_leaves_before_a_whole_answer_frees_its_blocks(left_server: ServerProcess) -> None:
    before = left_server.wait_until_idle().get("finished_abort", 0)
    with pytest.raises(httpx.TimeoutException):
        httpx.post(
            f"{left_server.url}/v1/completions",
            json={"prompt": ["hi", "you"], "n": 8, "max_tokens": 16000, "ignore_eos": True},
            timeout=httpx.Timeout(60, read=0.3),
            verify=False,
        )
    figures = left_server.wait_until_idle()
    assert figures["finished_abort"] > before
    assert figures["finished_length"] == 0


def test_many_clients_at_once_all_get_their_own_answer(server: ServerProcess) -> None:
    bodies = [{"prompt": f"hello {i}", "max_tokens": 8, "seed": i, "ignore_eos": True} for i in range(12)]

    def ask(body: dict[str, Any]) -> str:
        return str(server.post("/v1/completions", body).json()["choices"][0]["text"])

    alone = [ask(body) for body in bodies]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = list(pool.map(ask, bodies))
    assert together == alone
    server.wait_until_idle()


def test_a_full_queue_is_a_429_that_says_when_to_come_back(patient_model: Path) -> None:
    limits = "--max-seqs", "1", "--max-waiting", "1"
    small = ServerProcess.start(str(patient_model), "--backend", "reference", "--name", "tiny", *limits)
    try:
        with (
            openai.OpenAI(base_url=f"{small.url}/v1", api_key="x", max_retries=0) as client,
            httpx.stream("POST", f"{small.url}/v1/chat/completions", json=LONG, timeout=60, verify=False) as running,
            concurrent.futures.ThreadPoolExecutor(4) as pool,
        ):
            lines = running.iter_lines()
            next(lines)

            def ask(_: int) -> openai.APIStatusError | None:
                try:
                    client.completions.create(model="tiny", prompt="hi", max_tokens=2)
                except openai.APIStatusError as error:
                    return error
                return None

            asked = [pool.submit(ask, number) for number in range(4)]
            first_done = concurrent.futures.as_completed(asked, timeout=60)
            refused = [error for _ in range(3) if (error := next(first_done).result()) is not None]
            running.close()
            assert next(first_done).result() is None
        assert len(refused) == 3
        assert {error.status_code for error in refused} == {429}
        assert all(int(error.response.headers["retry-after"]) >= 1 for error in refused)
    finally:
        small.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_and_its_engine(own_server: ServerProcess, number: signal.Signals) -> None:
    engine = own_server.engine_pid
    assert own_server.stop(number) == 0
    assert not is_running(engine)


def test_a_signal_in_mid_answer_lets_it_end_or_tells_the_client(own_server: ServerProcess) -> None:
    engine = own_server.engine_pid
    lines: list[str] = []
    body = {**LONG, "n": 16}
    with httpx.stream("POST", f"{own_server.url}/v1/chat/completions", json=body, timeout=60, verify=False) as response:
        for line in response.iter_lines():
            if not lines:
                own_server.process.send_signal(signal.SIGINT)
            lines.append(line)
    said = [line for line in lines if line]
    assert said[-1] == "data: [DONE]"
    assert '"error"' in said[-2] or '"finish_reason"' in said[-2]
    assert own_server.process.wait(timeout=30) == 0
    assert not is_running(engine)


def test_a_server_that_is_killed_leaves_no_engine(own_server: ServerProcess) -> None:
    engine = own_server.engine_pid
    own_server.process.kill()
    own_server.process.wait(timeout=30)
    deadline = time.monotonic() + 30
    while is_running(engine):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def failing_start(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "puna.cli.main", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_a_port_in_use_is_said_before_the_model_is_loaded(tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert port in failing_start(str(tiny_model), "--backend", "reference", "--port", port)


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    assert "nothing.gguf" in failing_start(str(tmp_path / "nothing.gguf"), "--backend", "reference", "--port", "0")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but not really")
    assert "broken.gguf" in failing_start(str(broken), "--backend", "reference", "--port", "0")
