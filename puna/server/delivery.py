"""How an answer reaches the client: a stream of frames or one body, and an end to the work when the client is gone.

Both wait for the first chunk before the status is sent, so a request that the engine refuses has its own status. A
stream that is quiet for long is kept alive with comments, and its status is sent with the first of those. An error
after that goes into the stream as an event. It knows HTTP; it knows nothing of what the chunks say.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from puna.errors import PunaError
from puna.server.errors import ErrorShape, http_failure, openai_error
from puna.server.frames import DONE, KEEP_ALIVE, MEDIA_TYPE, named_frame, sse_frame

QUIET_S = 10.0  # after which a stream says that it lives

log = logging.getLogger("puna.server")

_STREAM_HEADERS = [
    (b"content-type", MEDIA_TYPE.encode() + b"; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def plain_frame(chunk: Any) -> bytes:
    return sse_frame(msgspec.json.encode(chunk))


def typed_frame(chunk: Any) -> bytes:
    """A frame named like the `type` of its struct."""
    return named_frame(chunk.type, msgspec.json.encode(chunk))


@dataclass(frozen=True)
class Wire:
    """How one endpoint's answers lie on the wire. `error`: the body of a refusal and, unless there is an `error_event`,
    what a stream says of a failure in its middle. `end`: the bytes behind the last chunk. `keep_alive`: those that say
    nothing but that there will be more."""

    error: ErrorShape = openai_error
    error_event: ErrorShape | None = None
    frame: Callable[[Any], bytes] = plain_frame
    end: bytes = DONE
    keep_alive: bytes = KEEP_ALIVE


OPENAI = Wire()


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def error_response(error: BaseException, shape: ErrorShape = openai_error) -> Response:
    if not isinstance(error, PunaError):
        log.error("a request hit a bug", exc_info=error)
    failure = http_failure(error)
    return Response(msgspec.json.encode(shape(failure)), failure.status, failure.headers, "application/json")


class StreamedAnswer(Response):
    """`chunks` as server-sent events. Closing the connection closes `chunks`, which aborts the request."""

    def __init__(self, chunks: AsyncGenerator[Any], further_headers: dict[str, str], wire: Wire = OPENAI) -> None:
        super().__init__()
        self.wire = wire
        self.chunks = chunks
        self.further_headers = further_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_connected(receive, self._send(scope, receive, send))

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream = _Stream(send, [(name.encode(), value.encode()) for name, value in self.further_headers.items()])
        keeping = asyncio.create_task(stream.keep_alive(self.wire.keep_alive))
        try:
            async for chunk in self.chunks:
                await stream.write(self.wire.frame(chunk))
        except Exception as error:
            if not stream.has_begun:
                await error_response(error, self.wire.error)(scope, receive, send)
                return
            if not isinstance(error, PunaError):
                log.error("a stream hit a bug", exc_info=error)
            shape = self.wire.error_event or self.wire.error
            await stream.write(self.wire.frame(shape(http_failure(error))))
        finally:
            keeping.cancel()
            await self.chunks.aclose()
        await stream.write(self.wire.end, is_last=True)


class _Stream:
    """A stream's bytes on their way: the status goes with the first of them."""

    def __init__(self, send: Send, further_headers: list[tuple[bytes, bytes]]) -> None:
        self.has_begun = False
        self._send = send
        self._further_headers = further_headers
        self._written = time.monotonic()

    async def write(self, data: bytes, *, is_last: bool = False) -> None:
        self._written = time.monotonic()
        if not self.has_begun:
            self.has_begun = True
            headers = [*_STREAM_HEADERS, *self._further_headers]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})

    async def keep_alive(self, data: bytes) -> None:
        """Writes `data` whenever nothing else was written for `QUIET_S` seconds; until it is cancelled."""
        while True:
            quiet_s = time.monotonic() - self._written
            if quiet_s >= QUIET_S:
                await self.write(data)
            else:
                await asyncio.sleep(QUIET_S - quiet_s)


class WholeAnswer(Response):
    """The body that `collect` makes of `chunks`; one path with the stream."""

    def __init__(
        self,
        chunks: AsyncGenerator[Any],
        collect: Callable[[AsyncGenerator[Any]], Awaitable[msgspec.Struct]],
        further_headers: dict[str, str],
        wire: Wire = OPENAI,
    ) -> None:
        super().__init__()
        self.wire = wire
        self.chunks = chunks
        self.further_headers = further_headers
        self.collect = collect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_connected(receive, self._send(scope, receive, send))

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = json_response(await self.collect(self.chunks), headers=self.further_headers)
        except Exception as error:
            response = error_response(error, self.wire.error)
        finally:
            await self.chunks.aclose()
        await response(scope, receive, send)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Runs `work`, and cancels it when the client closes the connection."""
    answering = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not answering.done():
            answering.cancel()
        leaving.cancel()
        outcome, _ = await asyncio.gather(answering, leaving, return_exceptions=True)
    if isinstance(outcome, Exception):
        raise outcome


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
