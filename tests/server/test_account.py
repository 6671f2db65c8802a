"""What a real server says of its requests: ids, log lines without prompts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.process import ServerProcess

ROOT = Path(__file__).parents[2]
SECRET = "zanzibar"
BODY = {"prompt": SECRET, "max_tokens": 5, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def logged(tiny_model: Path) -> Iterator[ServerProcess]:
    running = ServerProcess.start(str(tiny_model), "--name", "tiny", "--backend", "reference", "--log-format", "json")
    yield running
    running.kill()


def line_of(server: ServerProcess, request_id: str) -> dict[str, Any]:
    """The one line of a request, as soon as it is there."""
    deadline = time.monotonic() + 30
    while True:
        found = [line for line in json_lines(server) if line.get("request_id") == request_id]
        if found:
            assert len(found) == 1
            return found[0]
        assert time.monotonic() < deadline, f"no line for {request_id} in {server.lines}"
        time.sleep(0.02)


def json_lines(server: ServerProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.lines if line.startswith("{")]


def test_a_request_has_one_line_with_its_figures_and_without_its_prompt(logged: ServerProcess) -> None:
    response = logged.post("/v1/completions", BODY, **{"x-request-id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    line = line_of(logged, "mine-1")
    usage = response.json()["usage"]
    wanted = {
        "level": "info",
        "message": "request",
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "tenant": "default",
        "model": "tiny",
        "answer_id": response.json()["id"],
        "prompt_tokens": usage["prompt_tokens"],
        "output_tokens": 5,
        "cached_tokens": 0,
        "finish": "length",
    }
    assert {name: line[name] for name in wanted} == wanted
    assert 0 < line["ttft_s"] <= line["duration_s"]
    assert not any(SECRET in printed for printed in logged.lines)


def test_a_stream_has_its_line_when_it_has_ended(logged: ServerProcess) -> None:
    with httpx.stream(
        "POST",
        f"{logged.url}/v1/completions",
        json={**BODY, "n": 2, "stream": True},
        headers={"x-request-id": "s"},
        verify=False,
    ) as response:
        assert response.headers["x-request-id"] == "s"
        response.read()
    line = line_of(logged, "s")
    assert (line["status"], line["output_tokens"], line["finish"]) == (200, 10, "length,length")


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, 'a"b', "\x7f"])
def test_an_id_that_is_none_is_replaced(logged: ServerProcess, given: str) -> None:
    response = httpx.get(f"{logged.url}/v1/models", headers={"x-request-id": given}, verify=False)
    assert response.headers["x-request-id"].startswith("req-")
    assert line_of(logged, response.headers["x-request-id"])["status"] == 200


def test_refused_requests_have_their_line_too(logged: ServerProcess) -> None:
    refused = logged.post("/v1/completions", {**BODY, "temperature": -1})
    assert line_of(logged, refused.headers["x-request-id"])["status"] == 400
    missing = httpx.get(f"{logged.url}/nowhere", verify=False)
    assert line_of(logged, missing.headers["x-request-id"])["status"] == 404


def test_probes_are_not_worth_a_line(logged: ServerProcess) -> None:
    ids = [httpx.get(f"{logged.url}{path}", verify=False).headers["x-request-id"] for path in ("/health", "/metrics")]
    logged.post("/v1/completions", BODY, **{"x-request-id": "after-probes"})
    line_of(logged, "after-probes")
    assert not any(line.get("request_id") in ids for line in json_lines(logged))


def test_lifecycle_is_told(logged: ServerProcess) -> None:
    ready = next(line for line in json_lines(logged) if line["message"] == "ready")
    assert ready["engine_pid"] == logged.engine_pid
    assert ready["url"] == logged.url


def test_prompts_are_logged_where_that_is_asked_for_and_text_lines_stay_lines(tiny_model: Path) -> None:
    server = ServerProcess.start(str(tiny_model), "--backend", "reference", "--log-prompts")
    try:
        server.post("/v1/completions", {**BODY, "prompt": f"{SECRET}\nINFO a line of its own"})
        assert server.stop() == 0
        (line,) = [line for line in server.lines if SECRET in line]
        assert "INFO puna.requests: request" in line
        assert "status=200" in line
        assert not any(line.startswith("INFO") for line in server.lines)
    finally:
        server.kill()


def test_a_log_that_nobody_reads_stops_no_request(tiny_model: Path) -> None:
    command = [sys.executable, "-m", "puna.cli.main", "serve", str(tiny_model), "--backend", "reference", "--port", "0"]
    silent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert silent.stdout is not None
        url = next(line.split()[-1] for line in silent.stdout if line.startswith("Puna serves "))
        with httpx.Client(base_url=url, timeout=60, verify=False) as client:
            for _ in range(700):  # more lines than a pipe holds
                assert client.get("/v1/models").status_code == 200
    finally:
        silent.kill()
        silent.communicate()
