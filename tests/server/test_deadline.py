"""A client that says how long it waits: after that it gets what is there, and the engine is free."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.process import ServerProcess

LONG: dict[str, Any] = {"ignore_eos": True, "max_tokens": 15_000, "temperature": 0}
CHAT: dict[str, Any] = {**LONG, "messages": [{"role": "user", "content": "hello"}]}
TEXT: dict[str, Any] = {**LONG, "prompt": ["hello", "llama"]}


@pytest.fixture(scope="module")
def slow_server(patient_model: Path) -> Iterator[ServerProcess]:
    running = ServerProcess.start(str(patient_model), "--backend", "reference")
    running.post("/v1/completions", {"prompt": "hello", "max_tokens": 1})  # what only the first one takes
    yield running
    running.kill()


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
def test_an_answer_ends_at_its_deadline_with_what_is_there(
    slow_server: ServerProcess, path: str, body: dict[str, Any]
) -> None:
    answer = slow_server.post(path, {**body, "deadline_s": 2.0}).json()
    assert [(c["finish_reason"], c["stop_reason"]) for c in answer["choices"]] == [("length", "deadline")] * len(
        answer["choices"]
    )
    assert 0 < answer["usage"]["completion_tokens"] < 15_000
    slow_server.wait_until_idle()


def test_a_header_says_the_same_and_the_shorter_time_counts(slow_server: ServerProcess) -> None:
    answer = slow_server.post("/v1/completions", {**TEXT, "deadline_s": 1000}, **{"puna-deadline-s": "2"}).json()
    assert answer["choices"][0]["stop_reason"] == "deadline"
    refused = slow_server.post("/v1/completions", TEXT, **{"puna-deadline-s": "soon"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "puna-deadline-s")


def test_a_stream_ends_like_any_other(slow_server: ServerProcess) -> None:
    events = slow_server.events("/v1/chat/completions", {**CHAT, "deadline_s": 2})
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    assert events[-2]["choices"][0]["stop_reason"] == "deadline"


@pytest.mark.parametrize("stream", [False, True])
def test_with_nothing_to_answer_it_is_an_error_that_clients_do_not_repeat(
    slow_server: ServerProcess, stream: bool
) -> None:
    response = slow_server.post("/v1/chat/completions", {**CHAT, "deadline_s": 1e-6, "stream": stream})
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"
    assert response.headers["x-should-retry"] == "false"
    slow_server.wait_until_idle()


def test_an_answer_in_time_does_not_notice(server: ServerProcess) -> None:
    body = {"prompt": "hello", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    timed = server.post("/v1/completions", {**body, "deadline_s": 600}).json()
    assert timed["choices"] == server.post("/v1/completions", body).json()["choices"]
