"""`/v1/messages` by hand: Anthropic's shapes, whole and streamed. The official client is in tests/clients."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.server.process import ServerProcess

PATH = "/v1/messages"
ASKED: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 12,
    "messages": [{"role": "user", "content": "hello llama"}],
    "temperature": 20.0,
    "seed": 7,
}
NO_END = {"ignore_eos": True}


def events_of(server: ServerProcess, body: dict[str, Any]) -> list[tuple[str, Any]]:
    events = []
    with httpx.stream("POST", server.url + PATH, json={**body, "stream": True}, timeout=120, verify=False) as response:
        assert response.status_code == 200, response.read()
        lines = [line for line in response.iter_lines() if line]
    for name, data in zip(lines[::2], lines[1::2], strict=True):
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


def chat(server: ServerProcess, messages: list[Any], **more: Any) -> str:
    body = {"messages": messages, "max_tokens": 12, "temperature": 20.0, "seed": 7, **more}
    return str(server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"])


def test_a_message_has_anthropics_shape_and_says_what_chat_would_say(server: ServerProcess) -> None:
    message = server.post(PATH, {**ASKED, **NO_END}).json()
    assert message["id"].startswith("msg_")
    assert (message["type"], message["role"], message["model"]) == ("message", "assistant", "tiny")
    assert (message["stop_reason"], message["stop_sequence"]) == ("max_tokens", None)
    assert message["usage"]["output_tokens"] == 12
    (block,) = message["content"]
    assert block["text"] == chat(server, ASKED["messages"], **NO_END)


def test_a_stream_has_its_events_in_order_and_the_same_text(server: ServerProcess) -> None:
    events = events_of(server, {**ASKED, **NO_END})
    kinds = [name for name, _ in events]
    assert all(name == data["type"] for name, data in events)
    assert list(dict.fromkeys(kinds)) == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    text = "".join(data["delta"]["text"] for name, data in events if name == "content_block_delta")
    assert text == server.post(PATH, {**ASKED, **NO_END}).json()["content"][0]["text"]
    assert events[0][1]["message"]["usage"]["output_tokens"] == 0
    assert events[-2][1]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert events[-2][1]["usage"]["output_tokens"] == 12


def test_system_and_blocks_are_read_as_text(server: ServerProcess) -> None:
    system = [
        {"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "be kind"},
    ]
    messages = [{"role": "user", "content": [{"type": "text", "text": "hello llama"}]}]
    message = server.post(PATH, {**ASKED, "system": system, "messages": messages}).json()
    said = chat(server, [{"role": "system", "content": "be brief\nbe kind"}, *ASKED["messages"]])
    assert message["content"][0]["text"] == said


def test_a_stop_sequence_is_named(server: ServerProcess) -> None:
    whole = server.post(PATH, {**ASKED, **NO_END}).json()["content"][0]["text"]
    stop = whole[4:7]
    message = server.post(PATH, {**ASKED, **NO_END, "stop_sequences": ["never to come", stop]}).json()
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", stop)
    assert message["content"][0]["text"] == whole[: whole.index(stop)]


def test_an_answer_that_ends_by_itself_ended_its_turn(server: ServerProcess) -> None:
    assert server.post(PATH, {**ASKED, "logit_bias": {"2": 100}}).json()["stop_reason"] == "end_turn"


def test_an_answer_goes_on_from_the_assistants_last_message(server: ServerProcess) -> None:
    prefilled = [*ASKED["messages"], {"role": "assistant", "content": "The answer is"}]
    counted = server.post(f"{PATH}/count_tokens", {"messages": ASKED["messages"]}).json()["input_tokens"]
    message = server.post(PATH, {**ASKED, "messages": prefilled}).json()
    usage = message["usage"]
    extra = server.post("/tokenize", {"prompt": "The answer is", "add_special_tokens": False}).json()["count"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == counted + extra
    assert not message["content"][0]["text"].startswith("The answer is")


def test_more_tokens_than_the_context_holds_fill_it_and_that_is_said(server: ServerProcess) -> None:
    message = server.post(PATH, {**ASKED, **NO_END, "max_tokens": 32_000}).json()
    assert message["stop_reason"] == "model_context_window_exceeded"
    assert sum(message["usage"].values()) == 256


def test_cached_tokens_are_told_from_computed_ones(server: ServerProcess) -> None:
    body = {**ASKED, "messages": [{"role": "user", "content": "a prompt that fills a few blocks " * 4}]}
    first, second = (server.post(PATH, body).json()["usage"] for _ in range(2))
    assert first["cache_read_input_tokens"] < second["cache_read_input_tokens"]
    assert sum(first.values()) == sum(second.values())


@pytest.mark.parametrize(
    ("change", "status", "kind"),
    [
        ({"max_tokens": None}, 400, "invalid_request_error"),
        ({"max_tokens": 0}, 400, "invalid_request_error"),
        ({"messages": []}, 400, "invalid_request_error"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, 400, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, 400, "invalid_request_error"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, 400, "invalid_request_error"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, 400, "invalid_request_error"),
        ({"tool_choice": {"type": "any"}}, 400, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, 400, "invalid_request_error"),
        ({"thinking": {"type": "sometimes"}}, 400, "invalid_request_error"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, 400, "invalid_request_error"),
        ({"output_format": {"type": "json_schema"}}, 400, "invalid_request_error"),
        ({"temperature": -1}, 400, "invalid_request_error"),
        ({"model": "other"}, 404, "not_found_error"),
        ({"deadline_s": 1e-9}, 504, "timeout_error"),
    ],
)
def test_errors_have_anthropics_shape(server: ServerProcess, change: dict[str, Any], status: int, kind: str) -> None:
    for stream in (False, True):
        response = server.post(PATH, {**ASKED, "stream": stream, **change})
        assert response.status_code == status
        body = response.json()
        assert (body["type"], body["error"]["type"]) == ("error", kind)
        assert body["error"]["message"]


def test_other_paths_and_methods_there_have_it_too(server: ServerProcess) -> None:
    assert server.get(PATH).json()["type"] == "error"
    assert server.post(f"{PATH}/batches", {}).json()["error"]["type"] == "not_found_error"


def test_unknown_names_are_named_here_too(server: ServerProcess) -> None:
    body = {**ASKED, "mood": "good", "metadata": {"user_id": "me", "more": 1}}
    assert server.post(PATH, body).headers["puna-ignored"] == "mood, metadata.more"
