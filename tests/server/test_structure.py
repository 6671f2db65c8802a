"""Forms of answers over HTTP: every field that asks for one, on every endpoint, streamed and whole."""

from __future__ import annotations

import json
import re
from typing import Any

import openai
import pytest

from tests.server.process import ServerProcess

DRAWN: dict[str, Any] = {"model": "tiny", "temperature": 3.0, "seed": 5}
CHAT: dict[str, Any] = {**DRAWN, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 60}
TEXT: dict[str, Any] = {**DRAWN, "prompt": "hello", "max_tokens": 60}

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["kind", "count"],
    "additionalProperties": False,
}
GBNF = 'root ::= "a" [0-9]{2}'
OF_SCHEMA = r'\{"kind":"(red|blue)","count":[1-9]\}'

# What is added to a request, and what the answer has to match.
ASKED: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}, OF_SCHEMA),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": False}}}, OF_SCHEMA),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, OF_SCHEMA),
    ({"structured_outputs": {"json": SCHEMA}}, OF_SCHEMA),
    ({"structured_outputs": {"json": json.dumps(SCHEMA), "disable_any_whitespace": True}}, OF_SCHEMA),
    ({"structured_outputs": {"regex": "[ab]{4}", "choice": None}}, "[ab]{4}"),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
    ({"structured_outputs": {"grammar": GBNF}}, "a[0-9]{2}"),
    ({"guided_json": SCHEMA}, OF_SCHEMA),
    ({"guided_regex": "x[ab]{3}"}, "x[ab]{3}"),
    ({"guided_choice": ["yes", "no"]}, "yes|no"),
    ({"guided_grammar": 'start: "b" /[0-9]{2}/'}, "b[0-9]{2}"),
    ({"grammar": GBNF}, "a[0-9]{2}"),
    ({"json_schema": SCHEMA}, OF_SCHEMA),
]


@pytest.mark.parametrize(("asked", "form"), ASKED)
def test_an_answer_has_the_form_that_a_field_asks_for(server: ServerProcess, asked: dict[str, Any], form: str) -> None:
    (choice,) = server.post("/v1/chat/completions", {**CHAT, **asked}).json()["choices"]
    assert choice["finish_reason"] == "stop"
    assert re.fullmatch(form, choice["message"]["content"])


def test_a_stream_joined_is_the_whole_answer_and_completions_have_forms_too(server: ServerProcess) -> None:
    body = {**TEXT, "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}, "n": 3}
    whole = {c["index"]: c["text"] for c in server.post("/v1/completions", body).json()["choices"]}
    streamed: dict[int, str] = {}
    for event in server.events("/v1/completions", {**body, "stream": True})[:-1]:
        for choice in event["choices"]:
            streamed[choice["index"]] = streamed.get(choice["index"], "") + choice["text"]
    assert streamed == whole
    assert all(re.fullmatch(OF_SCHEMA, text) for text in whole.values())


def test_responses_and_messages_have_forms(server: ServerProcess) -> None:
    wanted = {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}
    response = server.post("/v1/responses", {**DRAWN, "input": "hello", "text": {"format": wanted}}).json()
    assert response["status"] == "completed"
    assert re.fullmatch(OF_SCHEMA, response["output"][0]["content"][0]["text"])
    assert response["text"]["format"] == wanted
    asked = {**CHAT, "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
    message = server.post("/v1/messages", asked).json()
    assert message["stop_reason"] == "end_turn"
    assert re.fullmatch(OF_SCHEMA, message["content"][0]["text"])
    older = {**CHAT, "output_format": {"type": "json_schema", "schema": SCHEMA}}
    assert re.fullmatch(OF_SCHEMA, server.post("/v1/messages", older).json()["content"][0]["text"])


UNENFORCED = {"type": "json_schema", "schema": {"not": {}}}


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"type": "json_schema", "name": "x"}, "text.format.schema"),
        (UNENFORCED, "text.format"),
        ({"type": "yaml"}, "text.format"),
    ],
)
def test_a_wrong_format_of_a_response_is_refused(server: ServerProcess, given: dict[str, Any], param: str) -> None:
    answer = server.post("/v1/responses", {"input": "x", "text": {"format": given}})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("config", [{"effort": "high"}, {"format": {"type": "json_schema"}}, {"format": UNENFORCED}])
def test_a_wrong_format_of_a_message_is_refused(server: ServerProcess, config: dict[str, Any]) -> None:
    answer = server.post("/v1/messages", {**CHAT, "output_config": config})
    assert answer.status_code == 400
    assert "output_config" in answer.text or "uses not" in answer.text


def test_a_bad_grammar_is_refused_as_json_also_where_a_stream_was_asked_for(server: ServerProcess) -> None:
    answer = server.post("/v1/chat/completions", {**CHAT, "stream": True, "guided_regex": "a("})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "guided_regex"
    assert server.health()["status"] == "ok"


def test_the_official_client_sends_a_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hello"}],
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
        max_tokens=60,
        seed=3,
    )
    assert re.fullmatch(OF_SCHEMA, answer.choices[0].message.content or "")


def test_any_json_object_has_no_white_space_unless_that_is_asked_for(server: ServerProcess) -> None:
    body = {**CHAT, "response_format": {"type": "json_object"}, "max_tokens": 30}
    text = server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    assert text.startswith("{")
    spacious = {**CHAT, "structured_outputs": {"json_object": True, "any_whitespace": True}, "max_tokens": 30}
    assert server.post("/v1/chat/completions", spacious).status_code == 200
