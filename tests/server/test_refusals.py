"""Requests that are wrong: each is refused with the right status and a body that says what is wrong."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from tests.server.process import ServerProcess

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "hi", "max_tokens": 2}

# What is changed in a good chat request, the status, and the `param` of the error.
CHAT_REFUSALS: list[tuple[dict[str, Any], int, str | None]] = [
    ({"temperature": -1}, 400, "temperature"),
    ({"temperature": "hot"}, 400, "temperature"),
    ({"temperature": True}, 400, "temperature"),
    ({"top_p": 0}, 400, "top_p"),
    ({"top_p": 1.5}, 400, "top_p"),
    ({"top_k": -2}, 400, "top_k"),
    ({"top_k": 1.5}, 400, "top_k"),
    ({"min_p": 2}, 400, "min_p"),
    ({"n": 0}, 400, "n"),
    ({"n": 1000000}, 400, "n"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_tokens": -5}, 400, "max_tokens"),
    ({"max_tokens": 10**30}, 400, "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, 400, "max_completion_tokens"),
    ({"max_tokens": 2, "min_tokens": 3}, 400, "min_tokens"),
    ({"repetition_penalty": 0}, 400, "repetition_penalty"),
    ({"frequency_penalty": 3}, 400, "frequency_penalty"),
    ({"presence_penalty": -3}, 400, "presence_penalty"),
    ({"logit_bias": {"5": 101}}, 400, "logit_bias"),
    ({"logit_bias": {"99999": 1}}, 400, "logit_bias"),
    ({"logit_bias": {"word": 1}}, 400, "logit_bias"),
    ({"allowed_token_ids": []}, 400, "allowed_token_ids"),
    ({"allowed_token_ids": [99999]}, 400, "allowed_token_ids"),
    ({"stop_token_ids": [-1]}, 400, "stop_token_ids"),
    ({"stop": ""}, 400, "stop"),
    ({"stop": ["a", ""]}, 400, "stop"),
    ({"stop": 5}, 400, "stop"),
    ({"stop": ["x"] * 65}, 400, "stop"),
    ({"bad_words": [""]}, 400, "bad_words"),
    ({"bad_words": ["x"] * 1025}, 400, "bad_words"),
    ({"messages": [{"role": "user", "content": "hi", "name": 5}]}, 400, "messages[0].name"),
    ({"seed": "x"}, 400, "seed"),
    ({"seed": 2**64}, 400, "seed"),
    ({"priority": 5}, 400, "priority"),
    ({"priority": 10**30}, 400, "priority"),
    ({"logit_bias": {"9" * 30: 1}}, 400, "logit_bias"),
    ({"stop_token_ids": [10**30]}, 400, "stop_token_ids"),
    ({"allowed_token_ids": [10**30]}, 400, "allowed_token_ids"),
    ({"top_logprobs": 3}, 400, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
    ({"logprobs": 5}, 400, "logprobs"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
    ({"stream": "yes"}, 400, "stream"),
    ({"tools": 5}, 400, "tools"),
    ({"tools": [5]}, 400, "tools"),
    ({"tools": [{"type": "web_search"}]}, 400, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, 400, "tools[0].function"),
    *(
        ({"tools": [{"type": "function", "function": {"name": name}}]}, 400, "tools[0].function.name")
        for name in ("", 'a"b', "a\nb", "x" * 10_000, "{{ 7 * 7 }}", "{% raw %}", "é", 5, None)
    ),
    *(
        ({"tools": [{"type": "function", "function": {"name": "f", **wrong}}]}, 400, f"tools[0].function.{param}")
        for wrong, param in (
            ({"parameters": []}, "parameters"),
            ({"parameters": "object"}, "parameters"),
            ({"parameters": {"type": "string"}}, "parameters"),
            ({"parameters": {"items": json.loads("[" * 60 + "]" * 60)}}, "parameters"),
            ({"description": {}}, "description"),
            ({"strict": "yes"}, "strict"),
        )
    ),
    ({"tools": [{"type": "function", "function": {"name": "f"}}] * 2}, 400, "tools"),
    ({"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(2000)]}, 400, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "always"}, 400, "tool_choice"),
    (
        {
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "tool_choice": {"type": "function", "function": {"name": "g"}},
        },
        400,
        "tool_choice",
    ),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, 400, "tool_choice"),
    ({"functions": [{"name": "f"}], "tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "functions"),
    ({"parallel_tool_calls": "no"}, 400, "parallel_tool_calls"),
    ({"documents": [{"text": "x"}]}, 400, "documents"),
    ({"chat_template_kwargs": {"messages": []}}, 400, "chat_template_kwargs.messages"),
    ({"continue_final_message": True}, 400, "continue_final_message"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].tool_call_id"),
    ({"messages": [{"role": "user", "content": "x", "tool_call_id": "c"}]}, 400, "messages[0].tool_call_id"),
    ({"messages": [{"role": "assistant", "tool_calls": "x"}]}, 400, "messages[0].tool_calls"),
    ({"messages": [{"role": "assistant", "tool_calls": [5]}]}, 400, "messages[0].tool_calls[0]"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": ""}}]}]},
        400,
        "messages[0].tool_calls[0].function.name",
    ),
    ({"tool_choice": "required"}, 400, "tool_choice"),
    ({"response_format": {"type": "xml"}}, 400, "response_format"),
    ({"response_format": {"type": "json_schema"}}, 400, "response_format.json_schema.schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}}, 400, "response_format"),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, 400, "guided_regex"),
    ({"reasoning_effort": "high"}, 400, "reasoning_effort"),
    ({"guided_json": {"type": "array", "uniqueItems": True}}, 400, "guided_json"),
    ({"guided_json": [1]}, 400, "guided_json"),
    ({"guided_regex": "a("}, 400, "guided_regex"),
    ({"guided_choice": []}, 400, "guided_choice"),
    ({"guided_choice": "yes"}, 400, "guided_choice"),
    ({"guided_grammar": "nonsense"}, 400, "guided_grammar"),
    ({"grammar": "nonsense"}, 400, "grammar"),
    ({"json_schema": {"minimum": 3, "maximum": 1, "type": "integer"}}, 400, "json_schema"),
    ({"structured_outputs": {}}, 400, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, 400, "structured_outputs"),
    ({"structured_outputs": {"json": {}, "whitespace_pattern": " "}}, 400, "structured_outputs.whitespace_pattern"),
    ({"structured_outputs": {"structural_tag": "x"}}, 400, "structured_outputs.structural_tag"),
    ({"prompt_logprobs": -1}, 400, "prompt_logprobs"),
    ({"deadline_s": 0}, 400, "deadline_s"),
    ({"deadline_s": 1e9}, 400, "deadline_s"),
    ({"use_beam_search": 7}, 400, "use_beam_search"),
    ({"messages": []}, 400, "messages"),
    ({"messages": "hi"}, 400, "messages"),
    ({"messages": [5]}, 400, None),
    ({"messages": [{"role": "wizard", "content": "hi"}]}, 400, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, 400, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400, None),
    ({"messages": [{"role": "user", "content": "hi", "tool_calls": [1]}]}, 400, "messages[0].tool_calls"),
    ({"model": "other"}, 404, "model"),
    ({"model": 5}, 400, "model"),
]

TEXT_REFUSALS: list[tuple[dict[str, Any], int, str | None]] = [
    ({"prompt": ""}, 400, "prompt"),
    ({"prompt": []}, 400, "prompt"),
    ({"prompt": [[]]}, 400, "prompt[0]"),
    ({"prompt": None}, 400, "prompt"),
    ({"prompt": 5}, 400, "prompt"),
    ({"prompt": ["a", 5]}, 400, "prompt"),
    ({"prompt": [-1]}, 400, "prompt"),
    ({"prompt": [99999]}, 400, "prompt"),
    ({"prompt": [10**30]}, 400, "prompt"),
    ({"prompt": [1.5]}, 400, "prompt"),
    ({"prompt": [True]}, 400, "prompt"),
    ({"prompt": ["a"] * 1000}, 400, "prompt"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"logprobs": True}, 400, "logprobs"),
    ({"logprobs": 1000}, 400, "logprobs"),
    ({"prompt_logprobs": -1}, 400, "prompt_logprobs"),
    ({"best_of": 0}, 400, "best_of"),
    ({"suffix": "end"}, 400, "suffix"),
]


def check(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert len(error["message"]) < 1100
    return error


@pytest.mark.parametrize(("change", "status", "param"), CHAT_REFUSALS)
def test_a_wrong_chat_request_is_refused_and_names_the_field(
    server: ServerProcess, change: dict[str, Any], status: int, param: str | None
) -> None:
    error = check(server.post("/v1/chat/completions", {**CHAT, **change}), status)
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize(("change", "status", "param"), TEXT_REFUSALS)
def test_a_wrong_completion_request_is_refused_and_names_the_field(
    server: ServerProcess, change: dict[str, Any], status: int, param: str | None
) -> None:
    error = check(server.post("/v1/completions", {**TEXT, **change}), status)
    if param is not None:
        assert error["param"] == param


HOSTILE: list[tuple[bytes, str]] = [
    (b"", "nothing"),
    (b"{", "cut off"),
    (b"[]", "an array"),
    (b"null", "null"),
    (b'"text"', "a string"),
    (b"\x00\x01\x02", "binary"),
    (b"\xff\xfe{}", "another encoding"),
    (b'{"messages": [{"role": "user", "content": "\xff"}]}', "not UTF-8"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "half a character"),
    (b'{"messages": NaN}', "NaN"),
    (b'{"temperature": 1e999, "messages": []}', "a number out of range"),
    (b'{"messages": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "very deep"),
    (b'{"messages": [{"role": "user", "content": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}]}", "deep objects"),
    (b'{"messages": [{"role": "user", "content": "hi"}]} trailing', "trailing"),
    (b'{"' + b"k" * 500_000 + b'": 1}', "a long name"),
    (b'{"model": "' + b"m" * 500_000 + b'", "messages": [{"role": "user", "content": "hi"}]}', "a long model name"),
]


@pytest.mark.parametrize("body", [b for b, _ in HOSTILE], ids=[name for _, name in HOSTILE])
def test_a_hostile_body_is_the_clients_error_and_the_server_lives(server: ServerProcess, body: bytes) -> None:
    response = server.post("/v1/chat/completions", body)
    check(response, 404 if b"mmmm" in body else 400)
    assert server.health()["status"] == "ok"


def test_a_body_over_the_limit_is_refused_whether_declared_or_not(server: ServerProcess) -> None:
    big = json.dumps({**CHAT, "user": "x" * (2 << 20)}).encode()
    assert check(server.post("/v1/chat/completions", big), 413)["code"] == "body_too_large"

    def pieces() -> Any:
        for start in range(0, len(big), 65536):
            yield big[start : start + 65536]

    chunked = httpx.post(
        f"{server.url}/v1/chat/completions",
        content=pieces(),
        headers={"content-type": "application/json"},
        timeout=60,
        verify=False,
    )
    check(chunked, 413)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data"])
def test_another_content_type_is_refused(server: ServerProcess, kind: str) -> None:
    response = server.post("/v1/chat/completions", CHAT, **{"content-type": kind})
    assert "application/json" in check(response, 415)["message"]


def test_a_content_type_with_a_charset_is_fine(server: ServerProcess) -> None:
    response = server.post("/v1/chat/completions", CHAT, **{"content-type": "application/json; charset=utf-8"})
    assert response.status_code == 200


def test_a_context_that_cannot_hold_the_request_is_said_with_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt=[68] * 250, max_tokens=7)
    assert caught.value.code == "context_length_exceeded"
    assert all(number in caught.value.message for number in ("256", "250", "7"))
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "z" * 400}])
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("prompt", ["z" * 900_000, [5] * 200_000], ids=["text", "ids"])
def test_a_hopelessly_long_prompt_is_refused_before_work_is_wasted_on_it(server: ServerProcess, prompt: Any) -> None:
    error = check(server.post("/v1/completions", {**TEXT, "prompt": prompt}), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert ("at least" in error["message"]) == isinstance(prompt, str)  # its tokens were never counted


def test_no_answer_leads_to_where_a_header_says(server: ServerProcess) -> None:
    response = httpx.get(f"{server.url}/health/", headers={"host": "elsewhere.example"}, verify=False)
    check(response, 404)
    assert "location" not in response.headers


def test_unknown_models_paths_and_methods_have_their_own_errors(server: ServerProcess, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "model_not_found"
    check(httpx.get(f"{server.url}/v2/nothing", verify=False), 404)
    refused = httpx.get(f"{server.url}/v1/chat/completions", verify=False)
    check(refused, 405)
    assert refused.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["no http", "negative length", "a body that never comes", "a long path", "tls"],
)
def test_broken_http_does_not_hurt_the_server(server: ServerProcess, raw: bytes) -> None:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port or 0), timeout=10) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(10)
        received = connection.recv(65536)
    assert b" 200 " not in received.split(b"\r\n")[0]
    assert server.post("/v1/chat/completions", CHAT).status_code == 200


@pytest.mark.parametrize("name", ["", " ", "a\n", "\u00e9", ","])
def test_a_name_that_no_header_can_hold_is_ignored_like_any_other(server: ServerProcess, name: str) -> None:
    response = server.post("/v1/completions", {**TEXT, "odd": 1, name: 1})
    assert response.status_code == 200
    assert response.headers["puna-ignored"].startswith("odd, ")
