"""best_of and beam search over HTTP: returned once, whole, and counted."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.server.process import ServerProcess

BODY: dict[str, Any] = {"prompt": "hello llama", "max_tokens": 12, "seed": 3, "temperature": 1.5, "ignore_eos": True}
BEAMS: dict[str, Any] = {"prompt": "hello llama", "max_tokens": 8, "use_beam_search": True, "n": 3}
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}


def test_best_of_returns_the_likeliest_a_token(server: ServerProcess) -> None:
    drawn = server.post("/v1/completions", {**BODY, "n": 5, "logprobs": 0}).json()["choices"]
    answer = server.post("/v1/completions", {**BODY, "n": 2, "best_of": 5, "logprobs": 0}).json()
    wanted = sorted(drawn, key=lambda c: -sum(c["logprobs"]["token_logprobs"]) / len(c["logprobs"]["token_logprobs"]))
    assert [choice["text"] for choice in answer["choices"]] == [choice["text"] for choice in wanted[:2]]
    assert [choice["seed"] for choice in answer["choices"]] == [choice["seed"] for choice in wanted[:2]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"]["completion_tokens"] == 24
    plain = server.post("/v1/completions", {**BODY, "best_of": 5}).json()["choices"]
    assert (plain[0]["text"], plain[0]["logprobs"]) == (wanted[0]["text"], None)


def test_best_of_takes_several_prompts_and_says_once_what_was_cached(server: ServerProcess) -> None:
    body = {**BODY, "prompt": ["hello", "you and the llama"], "n": 2, "best_of": 3, "echo": True}
    together = server.post("/v1/completions", body).json()
    assert [choice["index"] for choice in together["choices"]] == [0, 1, 2, 3]
    for number, prompt in enumerate(body["prompt"]):
        alone = server.post("/v1/completions", {**body, "prompt": prompt}).json()["choices"]
        assert [c["text"] for c in alone] == [c["text"] for c in together["choices"][2 * number : 2 * number + 2]]


def test_beams_come_best_first_with_their_log_probabilities(server: ServerProcess) -> None:
    answer = server.post("/v1/completions", {**BEAMS, "logprobs": 2, "ignore_eos": True}).json()
    sums = [sum(choice["logprobs"]["token_logprobs"]) for choice in answer["choices"]]
    assert len(sums) == 3
    assert sums == sorted(sums, reverse=True)
    assert answer["usage"]["completion_tokens"] == 24
    narrowed = server.post("/v1/completions", {**BEAMS, "n": 1, "best_of": 3, "ignore_eos": True}).json()
    assert [choice["text"] for choice in narrowed["choices"]] == [answer["choices"][0]["text"]]
    greedy = server.post("/v1/completions", {**BEAMS, "use_beam_search": False, "n": 1, "temperature": 0})
    one = server.post("/v1/completions", {**BEAMS, "n": 1, "length_penalty": 0.0, "early_stopping": True})
    assert one.json()["choices"][0]["text"] == greedy.json()["choices"][0]["text"]


def test_a_chat_takes_both(server: ServerProcess) -> None:
    beams = server.post("/v1/chat/completions", {**CHAT, "use_beam_search": True, "n": 2, "early_stopping": "never"})
    assert [choice["index"] for choice in beams.json()["choices"]] == [0, 1]
    best = server.post("/v1/chat/completions", {**CHAT, "best_of": 3, "seed": 4, "logprobs": True}).json()
    assert len(best["choices"]) == 1
    assert best["choices"][0]["logprobs"]["content"]


def test_what_was_drawn_and_not_returned_is_counted(server: ServerProcess) -> None:
    def discarded() -> float:
        lines = server.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith("puna:discarded_tokens_total")).split()[-1])

    before = discarded()
    server.post("/v1/completions", {**BODY, "n": 1, "best_of": 4})
    assert discarded() == before + 3 * 12
    server.post("/v1/completions", {**BEAMS, "n": 1, "best_of": 3, "ignore_eos": True})
    assert discarded() == before + 3 * 12 + 1 + 7 * 3 - 8


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({**BODY, "best_of": 4, "stream": True}, "stream"),
        ({**BEAMS, "stream": True}, "stream"),
        ({**BODY, "best_of": 2, "n": 3}, "best_of"),
        ({**BEAMS, "n": 3, "best_of": 2}, "n"),
        ({**BEAMS, "temperature": 0.7}, "temperature"),
        ({**BEAMS, "stop": "x"}, "stop"),
        ({**BEAMS, "presence_penalty": 1.0}, "presence_penalty"),
        ({**BEAMS, "early_stopping": "soon"}, "early_stopping"),
        ({**BODY, "length_penalty": 2.0}, "length_penalty"),
        ({**BODY, "best_of": 100000}, "best_of"),
        ({**BEAMS, "n": 200}, "beam_width"),
        ({**BODY, "n": 200}, "n"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(server: ServerProcess, body: dict[str, Any], param: str) -> None:
    response = server.post("/v1/completions", body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_other_endpoints_say_that_they_have_no_beams(server: ServerProcess) -> None:
    asked = {"use_beam_search": True, "max_tokens": 5}
    for path, body in (
        ("/v1/responses", {"input": "hello", "use_beam_search": True}),
        ("/v1/messages", {"messages": CHAT["messages"], **asked}),
    ):
        response = server.post(path, body)
        assert response.status_code == 400
        assert "use_beam_search" in response.text


def test_a_deadline_ends_beams_with_an_error_and_best_of_with_what_there_is(server: ServerProcess) -> None:
    long = {"max_tokens": 200, "ignore_eos": True, "deadline_s": 0.15}
    beams = server.post("/v1/completions", {**BEAMS, **long, "n": 8})
    assert beams.status_code == 504, beams.text
    best = server.post("/v1/completions", {**BODY, **long, "deadline_s": 1.0, "n": 2, "best_of": 8, "max_tokens": 230})
    assert best.status_code == 200, best.text
    assert {choice.get("stop_reason") for choice in best.json()["choices"]} <= {"deadline", None}


def test_killed_in_the_middle_the_answers_are_those_of_an_undisturbed_run(patient_model: Path) -> None:
    server = ServerProcess.start(str(patient_model), "--name", "patient", "--kv-gib", "0.2")
    try:
        bodies = [
            {**BEAMS, "ignore_eos": True, "max_tokens": 600, "length_penalty": 0.5},
            {**BODY, "n": 2, "best_of": 4, "max_tokens": 600},
        ]
        wanted = [server.post("/v1/completions", body).json()["choices"] for body in bodies]
        found: dict[int, Any] = {}

        def ask(number: int) -> None:
            found[number] = server.post("/v1/completions", bodies[number]).json()["choices"]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        steps = server.health()["engine"]["steps"]
        while server.health()["engine"]["steps"] < steps + 100:
            time.sleep(0.01)
        os.kill(server.engine_pid, signal.SIGKILL)
        for thread in threads:
            thread.join()
        assert [found[number] for number in range(2)] == wanted
        assert server.health()["engine"]["restarts"] == 1
    finally:
        server.kill()
