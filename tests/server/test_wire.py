"""The edges of HTTP and JSON: what is allowed and rare works, what two readers could read in two ways is refused."""

from __future__ import annotations

import gzip
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.server.process import ServerProcess

PATH = "/v1/completions"
TEXT: dict[str, Any] = {"prompt": "hi", "max_tokens": 2}
DATA = json.dumps(TEXT).encode()
HEAD = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n".encode()


def connect(server: ServerProcess) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port or 0), timeout=60)


def said(server: ServerProcess, raw: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer, after which the server closed the connection."""
    with connect(server) as connection:
        connection.sendall(raw)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, body


def chunks(data: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x;a=b\r\n%s\r\n" % (len(data[i : i + 5]), data[i : i + 5]) for i in range(0, len(data), 5)) + end


def test_a_body_is_waited_for_with_an_interim_answer_only_where_it_would_be_read(server: ServerProcess) -> None:
    expecting = HEAD + b"expect: 100-continue\r\n"
    with connect(server) as connection:
        connection.sendall(expecting + b"content-length: %d\r\n\r\n" % len(DATA))
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(DATA)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    for refused, status in ((b"content-length: 9999999\r\n\r\n", 413), (b"content-encoding: br\r\n\r\n", 415)):
        assert said(server, expecting + refused)[0] == status


@pytest.mark.parametrize("end", [b"0\r\n\r\n", b"0\r\nx-sum: 5\r\nauthorization: Bearer x\r\n\r\n"])
def test_a_body_in_chunks_may_have_extensions_and_trailers(server: ServerProcess, end: bytes) -> None:
    status, _, body = said(server, HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunks(DATA, end))
    assert (status, json.loads(body)["usage"]["completion_tokens"]) == (200, 2)


def test_a_body_with_two_lengths_is_refused_and_its_connection_closed(server: ServerProcess) -> None:
    """One of two servers in a row would take the rest of it for the next request."""
    both = HEAD.replace(b"connection: close\r\n", b"") + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n"
    status, headers, body = said(server, both + chunks(DATA) + b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (status, headers["connection"], json.loads(body)["error"]["code"]) == (400, "close", "invalid_http")


def test_another_version_of_http_is_told_apart(server: ServerProcess) -> None:
    status, _, body = said(server, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert (status, json.loads(body)["error"]["code"]) == (400, "invalid_http")


@pytest.mark.parametrize("start", ["GET http://other.example:80/health?x=1", "GET /health", "HEAD /health"])
def test_an_address_may_be_whole(server: ServerProcess, start: str) -> None:
    assert said(server, f"{start} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())[0] == 200


@pytest.mark.parametrize("upgrade", ["websocket", "h2c"])
def test_an_upgrade_is_passed_over(server: ServerProcess, upgrade: str) -> None:
    asking = f"GET /version HTTP/1.1\r\nhost: x\r\nupgrade: {upgrade}\r\nconnection: upgrade, close\r\n"
    key = "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    assert said(server, (asking + key).encode())[0] == 200


def test_head_is_get_without_the_body_and_every_path_names_its_methods(server: ServerProcess) -> None:
    for path, item in server.get("/openapi.json").json()["paths"].items():
        url = server.url + path.replace("{", "").replace("}", "")
        if path.startswith("/admin/"):
            continue  # nobody here has the key
        allowed = {method.upper() for method in item} | ({"HEAD"} if "get" in item else set())
        for method in ("OPTIONS", "PUT", "NONSENSE"):
            answer = httpx.request(method, url, verify=False)
            assert answer.status_code == 405, path
            assert allowed <= set(answer.headers["allow"].split(", ")), path
        if "get" in item:
            head, whole = httpx.head(url, verify=False), httpx.get(url, verify=False)
            assert (head.status_code, head.content) == (whole.status_code, b"")
            assert head.headers["content-type"] == whole.headers["content-type"]


@pytest.mark.parametrize("kind", ["gzip", "br", "deflate, gzip", "GZIP"])
def test_a_compressed_body_is_refused_by_name(server: ServerProcess, kind: str) -> None:
    answer = server.post(PATH, gzip.compress(DATA), **{"content-encoding": kind})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (415, "unsupported_content_encoding")
    assert kind.lower() in error["message"]


def test_a_body_that_is_said_not_to_be_compressed_is_read(server: ServerProcess) -> None:
    assert server.post(PATH, TEXT, **{"content-encoding": "identity"}).status_code == 200


@pytest.mark.parametrize("kind", ["application/json; charset=utf-16", 'application/json;v=1; Charset="latin-1"'])
def test_a_body_in_another_charset_is_refused(server: ServerProcess, kind: str) -> None:
    assert server.post(PATH, TEXT, **{"content-type": kind}).status_code == 415


TWINS: list[tuple[str, str, str]] = [
    ("/v1/completions", '{"prompt": "hi", "max_tokens": 2, "max_tokens": 3}', "max_tokens"),
    ("/v1/completions", '{"prompt": "hi", "logit_bias": {"5": 1, "5": 2}}', "5"),
    ("/v1/completions", '{"prompt": "hi", "a": {"b": [{"c": 1, "c": 1}]}}', "c"),
    ("/v1/completions", '{"prompt": "hi", "temperature": 0, "te\\u006dperature": 1}', "temperature"),
    ("/v1/chat/completions", '{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "content"),
    ("/v1/responses", '{"input": "hi", "store": false, "store": true}', "store"),
    (
        "/v1/batches",
        '{"input_file_id": "x", "endpoint": "", "completion_window": "1h", "endpoint": ""}',
        "endpoint",
    ),
    ("/tokenize", '{"prompt": "a", "prompt": "b"}', "prompt"),
    ("/v1/completions", '{"prompt": "hi", "user": "' + "x" * 70_000 + '", "user": "y"}', "user"),
]


@pytest.mark.parametrize(("path", "body", "name"), TWINS)
def test_a_name_that_an_object_has_twice_is_refused(server: ServerProcess, path: str, body: str, name: str) -> None:
    answer = server.post(path, body.encode())
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["code"], error["param"]) == ("repeated_name", name)


@pytest.mark.parametrize(
    ("field", "status"),
    [
        ('"seed": -0', 200),
        ('"seed": -0.0', 400),
        ('"seed": -9223372036854775808', 200),
        ('"seed": -9223372036854775809', 400),
        ('"n": 2, "seed": 18446744073709551615', 200),
        ('"max_tokens": 2.0', 400),
        ('"temperature": 1e400', 400),
        ('"temperature": -0.0', 200),
        ('"temperature": NaN', 400),
        ('"temperature": -Infinity', 400),
        ('"a": NaN', 400),
        ('"a": ' + "9" * 5000, 400),
        ('"logit_bias": {"5": -0.0, "05": 1}', 400),
        ('"logit_bias": {' + ", ".join(f'"{token}": -100' for token in range(300)) + "}", 200),
        ('"logit_bias": {' + ", ".join(f'"{token}": 1' for token in range(50_000)) + "}", 400),
        ('"stop": "\\udfff"', 400),
        ('"a\\ud800": 1', 400),
    ],
)
def test_numbers_and_characters_at_their_edges(server: ServerProcess, field: str, status: int) -> None:
    answer = server.post(PATH, f'{{"prompt": "hi", {field}}}'.encode())
    assert answer.status_code == status, answer.text
    assert server.health()["status"] == "ok"


def test_ids_from_strangers_come_back_harmless(server: ServerProcess) -> None:
    for kind in ("models", "files", "batches", "responses"):
        for name in ("a%0d%0aset-cookie:%20x", "%ff%00", "%ed%a0%80", "..%2f..%2fetc%2fpasswd", "x" * 20_000):
            answer = server.get(f"/v1/{kind}/{name}")
            assert answer.status_code == 404
            assert "set-cookie" not in answer.headers
            assert len(answer.text) < 1200
