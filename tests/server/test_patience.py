"""Clients that begin a request and never end it: their connection is closed, others' are not."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from puna.server import body, patience
from puna.server.body import read_body
from puna.server.delivery import error_response
from puna.server.errors import RequestError
from puna.server.patience import PatientProtocol

Talk = Callable[[int], Awaitable[None]]


async def echo(request: Request) -> Response:
    try:
        return Response(await read_body(request, 1000))
    except RequestError as error:
        return error_response(error)


async def slow(_: Request) -> Response:
    await asyncio.sleep(1)
    return Response("late")


async def flood(request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 65536
                await asyncio.sleep(0)
        finally:
            request.app.state.ended = True

    return StreamingResponse(pieces())


APP = Starlette(routes=[Route("/", echo, methods=["POST"]), Route("/slow", slow), Route("/flood", flood)])


HEAD_OF_TEN = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n"


def serving(talk: Talk) -> None:
    """Runs `talk` with the port of a small server that uses the protocol."""

    async def play() -> None:
        config = uvicorn.Config(APP, port=0, http=PatientProtocol, ws="none", log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            await asyncio.wait_for(talk(server.servers[0].sockets[0].getsockname()[1]), 30)
        finally:
            server.should_exit = True
            await running

    asyncio.run(play())


async def said(port: int, *pieces: bytes) -> bytes:
    """Sends the pieces, then nothing; gives all that came until the server closed the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0.05)
    received = await reader.read()
    writer.close()
    return received


@pytest.mark.parametrize(
    "pieces",
    [(b"GET / HT",), (b"GET /slow HTTP/1.1\r\nhost: x\r\n", b"x-a: b\r\n", b"x-c: d\r\n")],
    ids=["half a line", "lines for ever"],
)
def test_a_head_that_does_not_come_whole_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, pieces: tuple[bytes, ...]
) -> None:
    monkeypatch.setattr(patience, "HEAD_S", 0.2)

    async def talk(port: int) -> None:
        assert await said(port, *pieces) == b""

    serving(talk)


def test_a_connection_on_which_nothing_comes_is_idle_not_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients on a machine that is overrun may connect, and write long after."""
    monkeypatch.setattr(patience, "HEAD_S", 0.1)

    async def late(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(0.5)
        writer.write(HEAD_OF_TEN + b"0123456789")
        assert (await reader.readline()).split()[1] == b"200"
        writer.close()

    serving(late)
    monkeypatch.setattr(patience, "KEEP_ALIVE_S", 0.2)

    async def never(port: int) -> None:
        assert await said(port) == b""

    serving(never)


def test_a_body_that_comes_behind_a_refusal_begins_no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "HEAD_S", 0.1)

    async def late(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD_OF_TEN.replace(b"POST /", b"POST /slow"))
        assert (await reader.readline()).split()[1] == b"405"
        writer.write(b"0123456789")
        await asyncio.sleep(0.5)
        writer.write(HEAD_OF_TEN + b"0123456789")
        assert b"HTTP/1.1 200 " in await reader.readuntil(b"0123456789")
        writer.close()

    serving(late)
    monkeypatch.setattr(patience, "KEEP_ALIVE_S", 0.2)

    async def never(port: int) -> None:
        assert (await said(port, HEAD_OF_TEN.replace(b"POST /", b"POST /slow"), b"0", b"1")).split()[1] == b"405"

    serving(never)


def test_time_in_which_the_server_stood_still_tries_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a laptop slept, or a busy machine let nobody run: who had connected has as long as before."""
    monkeypatch.setattr(patience, "KEEP_ALIVE_S", 0.6)
    monkeypatch.setattr(patience, "TICK_S", 0.1)

    async def talk(port: int) -> None:
        loop = asyncio.get_running_loop()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(0.05)
        time.sleep(1.5)  # server and client are both in this loop
        await asyncio.sleep(0.2)
        assert not reader.at_eof()
        since = loop.time()
        assert await reader.read() == b""  # it is closed in the end
        assert loop.time() - since < 5
        writer.close()

    serving(talk)


def test_a_second_head_that_does_not_come_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "HEAD_S", 0.2)

    async def talk(port: int) -> None:
        received = await said(port, b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n", b"", b"GET /slow HT")
        assert received.count(b"late") == 1

    serving(talk)


def test_an_idle_connection_is_closed_but_not_before_its_client_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a request may meet a connection that is just being closed, and its client an error."""
    keeps_s = httpx.Limits().keepalive_expiry
    assert keeps_s is not None
    assert 2 * keeps_s < patience.KEEP_ALIVE_S
    monkeypatch.setattr(patience, "KEEP_ALIVE_S", 0.2)

    async def talk(port: int) -> None:
        begun = asyncio.get_running_loop().time()
        head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n"
        received = await said(port, head + b"{}")
        assert received.startswith(b"HTTP/1.1 200 ")
        assert asyncio.get_running_loop().time() - begun < keeps_s

    serving(talk)


def test_an_answer_may_take_longer_than_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "HEAD_S", 0.2)

    async def talk(port: int) -> None:
        assert b"late" in await said(port, b"GET /slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")

    serving(talk)


def test_a_body_that_does_not_come_is_a_408_and_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_S", 0.2)

    async def talk(port: int) -> None:
        received = await said(port, HEAD_OF_TEN, b"1")
        assert received.startswith(b"HTTP/1.1 408 ")
        assert b"request_timeout" in received

    serving(talk)


def test_a_body_has_as_long_as_before_where_the_server_stood_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_S", 0.6)
    monkeypatch.setattr(patience, "TICK_S", 0.1)

    async def talk(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD_OF_TEN + b"12345")
        await asyncio.sleep(0.05)
        time.sleep(1.5)
        await asyncio.sleep(0.2)
        writer.write(b"67890")
        assert (await reader.readline()).split()[1] == b"200"
        writer.close()

    serving(talk)


def test_a_client_that_takes_nothing_of_its_answer_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "STALL_S", 0.2)

    async def talk(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET /flood HTTP/1.1\r\nhost: x\r\n\r\n")
            while not getattr(APP.state, "ended", False):
                await asyncio.sleep(0.01)

    serving(talk)
