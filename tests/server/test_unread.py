"""Who asks for a long stream and does not read it costs little and takes no engine, and gets all of it later."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.server.process import ServerProcess

CLIENTS = 2
TOKENS = 3000
BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "on and on"}],
    "max_tokens": TOKENS,
    "ignore_eos": True,
    "stream": True,
    "logprobs": True,
    "top_logprobs": 20,
    "seed": 3,
}
BOUND_MB = 12  # for all of them; what they ask for is many times that


@pytest.fixture(scope="module")
def server(patient_model: Path) -> Iterator[ServerProcess]:
    running = ServerProcess.start(str(patient_model), "--name", "tiny", "--kv-gib", "0.05")
    yield running
    running.kill()


def private_mb(pid: int) -> float:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024


def silent_client(server: ServerProcess) -> socket.socket:
    address = urlsplit(server.url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((address.hostname, address.port))
    data = json.dumps(BODY).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(data)}\r\n"
    connection.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + data)
    return connection


def read_all(connection: socket.socket) -> bytes:
    received = bytearray()
    while piece := connection.recv(1 << 20):
        received += piece
    return bytes(received)


def test_who_does_not_read_costs_bounded_memory_and_no_engine(server: ServerProcess) -> None:
    server.events("/v1/chat/completions", {**BODY, "max_tokens": 200})  # what every first request brings along
    server.wait_until_idle()
    before = private_mb(server.process.pid)
    connections = [silent_client(server) for _ in range(CLIENTS)]
    try:
        deadline = time.monotonic() + 60
        while (
            (engine := server.health()["engine"])["running"]
            or engine["blocks_used"]
            or engine["live_requests"] < CLIENTS
        ):
            assert time.monotonic() < deadline, str(engine)
            time.sleep(0.02)
        assert engine["live_requests"] == CLIENTS
        assert engine["finished_length"] == 1, "they were drawn to the end with nobody reading"
        assert private_mb(server.process.pid) - before < BOUND_MB
        streams = [read_all(connection) for connection in connections]
    finally:
        for connection in connections:
            connection.close()
    for stream in streams:
        assert stream.count(b'"top_logprobs":') >= TOKENS
        assert stream.count(b"data: [DONE]") == 1
        assert b'"error"' not in stream
    assert server.wait_until_idle()["finished_length"] == 1 + CLIENTS
