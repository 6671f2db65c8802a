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
    for name, value in {"logits_processors": ["x"], "suffix": "end", "use_beam_search": True}.items():
        error = server.post("/v1/completions", {**TEXT, name: value}).json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", name)
