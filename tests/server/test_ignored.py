"""Names that no endpoint knows: named in a header, or refused where the server is strict. Never swallowed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.process import ServerProcess

HEADER = "puna-ignored"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TEXT: dict[str, Any] = {"prompt": "hi", "max_tokens": 2}

# A path, a body, and the unknown names in it.
STRANGE: list[tuple[str, dict[str, Any], list[str]]] = [
    ("/v1/chat/completions", {**CHAT, "nonsense": 1, "conversation_id": [{"a": 1}]}, ["nonsense", "conversation_id"]),
    (
        "/v1/chat/completions",
        {**CHAT, "stream": True, "stream_options": {"include_usage": True, "more": 1}},
        ["stream_options.more"],
    ),
    (
        "/v1/chat/completions",
        {**CHAT, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "id": 3}], "when": 5}]},
        ["messages[0].when", "messages[0].content[0].id"],
    ),
    ("/v1/completions", {**TEXT, "messages": [], "n_predict": 5}, ["messages", "n_predict"]),
    ("/tokenize", {"prompt": "hi", "sideways": True}, ["sideways"]),
    ("/detokenize", {"tokens": [70], "sideways": True}, ["sideways"]),
]


# The same of names that are known, and of no use where they stand.
UNUSED: list[tuple[str, dict[str, Any], list[str]]] = [
    ("/tokenize", {"prompt": "hi", "add_generation_prompt": True}, ["add_generation_prompt"]),
    (
        "/v1/messages/count_tokens",
        {"messages": CHAT["messages"], "temperature": 0, "stop_token_ids": [3]},
        ["temperature", "stop_token_ids"],
    ),
    (
        "/v1/responses/input_tokens",
        {"input": "hi", "seed": 3, "max_output_tokens": 4, "store": True},
        ["max_output_tokens", "seed", "store"],
    ),
    (
        "/v1/chat/completions",
        {**CHAT, "messages": [*CHAT["messages"], {"role": "user", "content": "hi", "name": "ann"}]},
        ["messages[1].name"],
    ),
    (
        "/v1/messages",
        {**CHAT, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "citations": [1]}]}]},
        ["messages[0].content[0].citations"],
    ),
]


@pytest.fixture(scope="module")
def strict_server(tiny_model: Path) -> Iterator[ServerProcess]:
    running = ServerProcess.start(str(tiny_model), "--name", "tiny", "--backend", "reference", "--strict")
    yield running
    running.kill()


@pytest.mark.parametrize(("path", "body", "names"), STRANGE)
def test_unknown_names_are_left_out_and_named_in_a_header(
    server: ServerProcess, path: str, body: dict[str, Any], names: list[str]
) -> None:
    response = server.post(path, body)
    assert response.status_code == 200
    assert response.headers[HEADER].split(", ") == names


@pytest.mark.parametrize(("path", "body", "names"), STRANGE)
def test_a_strict_server_refuses_them(
    strict_server: ServerProcess, path: str, body: dict[str, Any], names: list[str]
) -> None:
    response = strict_server.post(path, body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "unknown_parameter"
    assert response.json()["error"]["param"] == names[0]


@pytest.mark.parametrize(("path", "body", "names"), UNUSED)
def test_what_is_known_and_has_no_effect_is_named_or_refused_too(
    server: ServerProcess, strict_server: ServerProcess, path: str, body: dict[str, Any], names: list[str]
) -> None:
    response = server.post(path, body)
    assert response.status_code == 200
    assert sorted(response.headers[HEADER].split(", ")) == sorted(names)
    refused = strict_server.post(path, body)
    assert refused.status_code == 400
    if path.startswith("/v1/messages"):
        assert any(name in refused.text for name in names)
    else:
        error = refused.json()["error"]
        assert error["code"] == "unused_parameter"
        assert error["param"] in names


def test_names_in_the_address_are_heard_or_named(server: ServerProcess, strict_server: ServerProcess) -> None:
    for path, known in {
        "/v1/files": "order=asc&purpose=batch&limit=5",
        "/v1/batches": "limit=5",
        "/v1/responses/resp_x/input_items": "order=asc&limit=5&include[]=a&include[]=b",
    }.items():
        assert HEADER not in server.get(f"{path}?{known}").headers
        assert server.get(f"{path}?{known}&colour=red").headers[HEADER] == "?colour"
        assert strict_server.get(f"{path}?{known}&colour=red").json()["error"]["param"] == "?colour"
        twice = server.get(f"{path}?limit=1&limit=2")
        assert (twice.status_code, twice.json()["error"]["param"]) == (400, "limit")
    assert server.get("/v1/files?order=sideways").json()["error"]["param"] == "order"
    assert server.post("/v1/completions?temperature=0", TEXT).headers[HEADER] == "?temperature"
    assert HEADER not in server.post("/v1/messages?beta=true", CHAT).headers
    assert strict_server.post("/v1/messages?beta=true", CHAT).status_code == 200


def test_what_is_known_is_not_in_the_header(server: ServerProcess, strict_server: ServerProcess) -> None:
    body = {**CHAT, "stream_options": None, "seed": 5, "user": "me"}
    for asked in (server, strict_server):
        response = asked.post("/v1/chat/completions", body)
        assert response.status_code == 200
        assert HEADER not in response.headers


def test_names_that_no_header_can_hold_are_made_harmless(server: ServerProcess) -> None:
    names = {"a\r\nset-cookie: x": 1, "é": 1, "k" * 5000: 1, **{f"n{i}": 1 for i in range(50)}}
    response = server.post("/v1/chat/completions", {**CHAT, **names})
    assert response.status_code == 200
    assert "set-cookie" not in response.headers
    listed = response.headers[HEADER].split(", ")
    assert listed[:2] == ["a??set-cookie:?x", "?"]
    assert listed[2] == "k" * 80
    assert listed[-1] == "and 33 more"


def test_a_name_that_is_no_utf8_is_the_clients_error(server: ServerProcess) -> None:
    response = server.post("/v1/chat/completions", b'{"\xff\xfe": 1, "messages": [{"role": "user", "content": "hi"}]}')
    assert response.status_code in (200, 400)
    assert server.health()["status"] == "ok"


def test_a_refused_request_says_what_it_ignored_too(server: ServerProcess) -> None:
    response = server.post("/v1/chat/completions", {**CHAT, "temperature": -1, "nonsense": 1})
    assert response.status_code == 400
    assert response.headers[HEADER] == "nonsense"


def test_a_feature_that_is_not_here_is_refused_even_so(server: ServerProcess) -> None:
    for name, value in {"logits_processors": ["x"], "suffix": "end"}.items():
        error = server.post("/v1/completions", {**TEXT, name: value}).json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", name)
