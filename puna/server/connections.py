"""What becomes of connections that are no ordinary ones: too many, without HTTP on them, or closed on one side.

All are answered with the error body that everything else here has. A client that has closed its side after asking may
still be reading: it is sent "102 Processing", which the system of one that is gone answers with a reset; the kernel's
state of the connection tells then.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import sys

import h11
import msgspec

from puna.server.errors import (
    MAX_HEAD_BYTES,
    ErrorShape,
    RequestError,
    head_too_large,
    http_failure,
    not_http,
    openai_error,
)
from puna.server.patience import PatientProtocol

LINGER_S = 1.0  # for the client to read a refusal, before what it sent unread resets the connection
SPARE_DESCRIPTORS = 64  # for the engine, files and the log
_FIRST_LOOK_S, _LAST_LOOK_S = 0.01, 1.0
_TCP_CLOSE = 7  # Linux: no connection any more


class Connection(PatientProtocol):
    """`max_connections` are served at once; others are told that there are too many."""

    max_connections = 1024
    error_shape: ErrorShape = staticmethod(openai_error)
    _is_refused = False
    _is_half_closed = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        open_now = len(self.connections)
        if open_now > self.max_connections + SPARE_DESCRIPTORS // 2:
            transport.abort()  # not even a descriptor to say no with
        elif open_now > self.max_connections:
            self._refuse(
                RequestError(
                    f"{self.max_connections} connections are open, the limit (max-connections); come back later",
                    status=503,
                    kind="overloaded_error",
                    code="too_many_connections",
                    retry_after_s=1.0,
                )
            )

    def data_received(self, data: bytes) -> None:
        if not self._is_refused:
            super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Called where what came is no HTTP, while h11's exception is handled."""
        error = sys.exception()
        if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            refusal = head_too_large(MAX_HEAD_BYTES)
        else:
            refusal = not_http(str(error or msg))
        if self._is_answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(refusal)
        else:
            self.transport.close()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays open, for an answer that may still be read."""
        if self._is_refused or not self._is_answering or self.cycle.more_body:
            return False
        self._is_half_closed = True
        if self.conn.our_state is h11.SEND_RESPONSE:
            if self.cycle.scope["http_version"] != "1.1":
                return False
            self.transport.write(
                self.conn.send(h11.InformationalResponse(status_code=102, headers=[], reason=b"Processing")) or b""
            )
        self._look(_FIRST_LOOK_S)
        return not self.transport.is_closing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_half_closed and not self._is_answering:
            self.transport.close()

    def _look(self, wait_s: float) -> None:
        """Again and again, ever later, until there is an answer or nobody who would read it."""
        if self.transport.is_closing() or not self._is_answering:
            return
        if _is_gone(self.transport.get_extra_info("socket")):
            self.transport.abort()
        else:
            self.loop.call_later(wait_s, self._look, min(2 * wait_s, _LAST_LOOK_S))

    def _refuse(self, error: RequestError) -> None:
        self._is_refused = True
        failure = http_failure(error)
        body = msgspec.json.encode(self.error_shape(failure))
        headers = {
            **failure.headers,
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
        }
        for event in (
            h11.Response(status_code=failure.status, headers=[*headers.items()], reason=b"Refused"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)


def bounded_connection(max_connections: int, error_shape: ErrorShape) -> type[Connection]:
    """The protocol's class for one server: uvicorn makes the objects."""
    return type(
        "BoundedConnection",
        (Connection,),
        {"max_connections": max_connections, "error_shape": staticmethod(error_shape)},
    )


def allow_descriptors(wanted: int) -> int:
    """Raises this process's limit of open files for so many connections, and says how many there is room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = wanted + SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < need:
        soft = need if hard == resource.RLIM_INFINITY else min(need, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - SPARE_DESCRIPTORS))


def _is_gone(connection: socket.socket) -> bool:
    """Where the system cannot tell, whoever has closed one side counts as gone."""
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE
    except (OSError, AttributeError):
        return True
