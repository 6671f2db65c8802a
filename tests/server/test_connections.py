"""Sockets as nobody should use them: each has its answer or its end, and the server goes on for the others."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.server.process import ServerProcess

LIMIT = 40
TEXT: dict[str, Any] = {"prompt": "hi", "max_tokens": 3, "ignore_eos": True}
LONG: dict[str, Any] = {"prompt": "hi", "max_tokens": 12000, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(patient_model: Path) -> Iterator[ServerProcess]:
    options = ["--max-connections", str(LIMIT), "--cors-origin", "https://page.example"]
    running = ServerProcess.start(str(patient_model), "--backend", "reference", "--name", "tiny", *options)
    yield running
    running.kill()


def connect(server: ServerProcess) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port or 0), timeout=60)


def request(body: dict[str, Any], version: str = "1.1") -> bytes:
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/{version}\r\nhost: x\r\ncontent-type: application/json\r\n"
    return head.encode() + f"content-length: {len(data)}\r\n\r\n".encode() + data


def read_all(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return received


def status_and_code(received: bytes) -> tuple[int, str]:
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"application/json" in head, received
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def test_a_half_closed_client_that_reads_has_its_answer(server: ServerProcess) -> None:
    with connect(server) as connection:
        connection.sendall(request({**TEXT, "max_tokens": 300}))
        connection.shutdown(socket.SHUT_WR)
        received = read_all(connection)
    interim, _, answer = received.partition(b"\r\n\r\n")
    assert interim.startswith(b"HTTP/1.1 102 ")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 300


def test_a_half_closed_client_has_its_stream_and_the_answers_to_all_it_asked(server: ServerProcess) -> None:
    with connect(server) as connection:
        connection.sendall(request({**TEXT, "stream": True}) + request(TEXT))
        connection.shutdown(socket.SHUT_WR)
        received = read_all(connection)
    assert received.count(b"HTTP/1.1 200 ") == 2
    assert received.index(b"[DONE]") < received.index(b'"completion_tokens":3')


def test_a_client_that_closed_for_good_costs_nothing_more(server: ServerProcess) -> None:
    for body in (LONG, {**LONG, "stream": True}):
        with connect(server) as connection:
            connection.sendall(request(body))
            while server.health()["engine"]["live_requests"] == 0:
                time.sleep(0.01)
        assert server.wait_until_idle(timeout_s=10)["live_requests"] == 0


def test_pipelined_requests_are_answered_in_their_order(server: ServerProcess) -> None:
    count = 8
    with connect(server) as connection:
        connection.sendall(b"".join(request({**TEXT, "max_tokens": n}) for n in range(1, count + 1)))
        received = b""
        while received.count(b'"usage"') < count:
            received += connection.recv(65536)
    counted = [int(part.split(b",")[0]) for part in received.split(b'"completion_tokens":')[1:]]
    assert counted == list(range(1, count + 1))


GARBAGE: list[tuple[str, bytes, int, str]] = [
    ("no http", b"nonsense\r\n\r\n", 400, "invalid_http"),
    ("a negative length", b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n", 400, "invalid_http"),
    ("tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "invalid_http"),
    (
        "a long path",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        431,
        "head_too_large",
    ),
    ("headers for ever", b"GET / HTTP/1.1\r\n" + b"x-a: b\r\n" * 20_000, 431, "head_too_large"),
    ("an unknown transfer", b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: rot13\r\n\r\n", 400, "invalid_http"),
    (
        "two lengths",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        400,
        "invalid_http",
    ),
]


@pytest.mark.parametrize(("raw", "status", "code"), [g[1:] for g in GARBAGE], ids=[g[0] for g in GARBAGE])
def test_garbage_is_answered_with_an_error_body_like_any_other(
    server: ServerProcess, raw: bytes, status: int, code: str
) -> None:
    with connect(server) as connection:
        connection.sendall(raw)
        assert status_and_code(read_all(connection)) == (status, code)


def test_garbage_behind_a_request_that_runs_ends_it(server: ServerProcess) -> None:
    chunked = (
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked"
    )
    with connect(server) as connection:
        connection.sendall(chunked + b'\r\n\r\n5\r\n{"a":\r\nnonsense\r\n')
        assert status_and_code(read_all(connection)) == (400, "invalid_http")
    assert server.post("/v1/completions", TEXT).status_code == 200
    assert not any("Traceback" in line for line in server.lines)


def test_too_many_connections_are_told_so_and_those_that_are_there_are_served(server: ServerProcess) -> None:
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(connect(server)) for _ in range(LIMIT)]
        opened[0].sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert opened[0].recv(65536).startswith(b"HTTP/1.1 200 ")
        late = stack.enter_context(connect(server))
        assert status_and_code(read_all(late)) == (503, "too_many_connections")
        crowd = [stack.enter_context(connect(server)) for _ in range(200)]
        answers = [read_all(connection) for connection in crowd]
        assert all(answer == b"" or status_and_code(answer)[0] == 503 for answer in answers)
    deadline = time.monotonic() + 10
    while True:  # the places of those that left are free again
        try:
            if httpx.get(f"{server.url}/ready", verify=False).status_code == 200:
                break
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_only_named_origins_may_ask_from_a_browser(server: ServerProcess) -> None:
    url = f"{server.url}/v1/completions"
    asking = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    allowed = httpx.options(url, headers={**asking, "origin": "https://page.example"}, verify=False)
    assert allowed.status_code == 204
    assert allowed.headers["access-control-allow-origin"] == "https://page.example"
    assert allowed.headers["access-control-allow-headers"] == "content-type"
    answered = httpx.post(url, json=TEXT, headers={"origin": "https://page.example"}, timeout=60, verify=False)
    assert answered.headers["access-control-allow-origin"] == "https://page.example"
    for origin in ("https://other.example", "null"):
        refused = httpx.options(url, headers={**asking, "origin": origin}, verify=False)
        assert refused.status_code == 405
        assert "access-control-allow-origin" not in refused.headers


def test_a_thousand_connections_at_once_are_served_where_descriptors_allow_it(tiny_model: Path) -> None:
    """From a shell whose limit is 256 open files, which the server raises by itself."""
    code = (
        "import resource, runpy, sys; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard));"
        "sys.argv = sys.argv[1:]; runpy.run_module('puna.cli.main', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, "puna", "serve", str(tiny_model), "--name", "tiny"]
    server = ServerProcess(
        subprocess.Popen(
            [*command, "--backend", "reference", "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )
    )
    try:
        server.wait_until_ready()
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(connect(server)) for _ in range(1000)]
            for connection in opened:
                connection.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
            assert all(connection.recv(65536).startswith(b"HTTP/1.1 200 ") for connection in opened)
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(lambda _: server.post("/v1/completions", TEXT).status_code, range(16)))
            assert answers == [200] * 16
    finally:
        server.kill()
