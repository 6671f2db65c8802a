"""Prompts that are too long over HTTP: refused, or cut where the request says so, which no client can miss."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from tests.server.process import ServerProcess

CONTEXT = 256
HEADER = "puna-truncated-tokens"
LONG: dict[str, Any] = {"prompt": "z" * 400, "max_tokens": 6, "temperature": 0}
CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "x" * 300},
        {"role": "assistant", "content": "y"},
        {"role": "user", "content": [{"type": "text", "text": "what?"}]},
    ],
    "max_tokens": 6,
    "temperature": 0,
}


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", LONG), ("/v1/chat/completions", CHAT)])
def test_without_the_option_it_is_refused_and_the_option_is_named(
    server: ServerProcess, path: str, body: dict[str, Any]
) -> None:
    refused = server.post(path, body)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert "truncate_prompt_tokens" in refused.json()["error"]["message"]


def test_a_text_is_cut_and_choice_and_header_say_by_how_much(server: ServerProcess) -> None:
    answer = server.post("/v1/completions", {**LONG, "truncate_prompt_tokens": -1})
    assert answer.status_code == 200
    body = answer.json()
    assert body["usage"]["prompt_tokens"] == CONTEXT - 6
    assert body["choices"][0]["truncated_tokens"] == 400 - (CONTEXT - 6)
    assert answer.headers[HEADER] == str(400 - (CONTEXT - 6))


def test_of_several_prompts_each_choice_says_its_own_and_the_header_the_sum(server: ServerProcess) -> None:
    answer = server.post(
        "/v1/completions",
        {**LONG, "prompt": ["z" * 30, "hi", "z" * 40], "n": 2, "temperature": 5, "truncate_prompt_tokens": 10},
    )
    assert [choice.get("truncated_tokens") for choice in answer.json()["choices"]] == [20, 20, None, None, 30, 30]
    assert answer.headers[HEADER] == "50"


def test_a_chat_is_cut_to_its_system_message_and_last_turn(server: ServerProcess) -> None:
    answer = server.post("/v1/chat/completions", {**CHAT, "truncate_prompt_tokens": -1})
    left = {**CHAT, "messages": [CHAT["messages"][0], CHAT["messages"][-1]]}
    alone = server.post("/v1/chat/completions", left)
    assert answer.json()["choices"][0]["truncated_tokens"] > 300
    assert answer.headers[HEADER] == str(answer.json()["choices"][0]["truncated_tokens"])
    assert answer.json()["choices"][0]["message"] == alone.json()["choices"][0]["message"]
    assert "truncated_tokens" not in alone.json()["choices"][0]
    assert HEADER not in alone.headers


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", LONG), ("/v1/chat/completions", CHAT)])
def test_a_stream_says_it_in_its_header_and_first_chunk(server: ServerProcess, path: str, body: dict[str, Any]) -> None:
    asked = {**body, "truncate_prompt_tokens": -1, "stream": True}
    with httpx.stream("POST", server.url + path, json=asked, timeout=120, verify=False) as response:
        response.read()
        cut = int(response.headers[HEADER])
    assert cut > 100
    events = server.events(path, asked)
    assert events[0]["choices"][0]["truncated_tokens"] == cut
    assert all("truncated_tokens" not in choice for event in events[1:-1] for choice in event["choices"])


def test_an_echo_is_what_the_model_read(server: ServerProcess) -> None:
    body = {"prompt": "hello " + "z" * 20, "max_tokens": 0, "echo": True, "logprobs": 0, "truncate_prompt_tokens": 5}
    choice = server.post("/v1/completions", body).json()["choices"][0]
    assert choice["text"] == "z" * 5
    assert len(choice["logprobs"]["tokens"]) == 5


def test_openais_client_sees_it(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", **LONG, extra_body={"truncate_prompt_tokens": 20})
    assert answer.choices[0].model_extra is not None
    assert answer.choices[0].model_extra["truncated_tokens"] == 380


@pytest.mark.parametrize("value", [0, -2, 1.5, "all", True])
def test_a_limit_that_is_none_is_refused(server: ServerProcess, value: Any) -> None:
    refused = server.post("/v1/completions", {**LONG, "truncate_prompt_tokens": value})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "truncate_prompt_tokens"
