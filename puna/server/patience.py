"""The HTTP protocol of the server, with an end to its patience: who connects has to ask for something, and to listen.

uvicorn waits for ever for the lines of a request that come one by one, and for a client to take what was written for
it, so a few hundred idle sockets would use up file descriptors and memory. How long a body may take is `read_body`'s to
say, by the same clock. Time in which this process itself stood still (a laptop asleep, a machine that is overrun) tries
nobody's patience: clients may have stood still as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger("puna.server")

HEAD_S = 20.0  # from its first byte
STALL_S = 30.0
KEEP_ALIVE_S = 75.0  # with no request: longer than clients keep connections, or one is closed as it is used again
TICK_S = 1.0  # what standing still uses up of somebody's time, however long it lasts


class Wait:
    """Calls `then` once, after so many seconds in which the event loop ran; not when it was cancelled before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, then: Callable[[], object]) -> None:
        self._loop, self._left, self._then = loop, seconds, then
        self._begin()

    def cancel(self) -> None:
        self._timer.cancel()

    def _begin(self) -> None:
        self._timer = self._loop.call_later(min(TICK_S, self._left), self._tick)

    def _tick(self) -> None:
        self._left -= TICK_S
        if self._left > 0:
            self._begin()
        else:
            self._then()


@contextmanager
def waiting(loop: asyncio.AbstractEventLoop, seconds: float, then: Callable[[], object]) -> Iterator[None]:
    """A `Wait` for as long as the block runs."""
    wait = Wait(loop, seconds, then)
    try:
        yield
    finally:
        wait.cancel()


class PatientProtocol(H11Protocol):
    """Closes a connection whose request's head is not whole `HEAD_S` seconds after its first byte, one on which nothing
    is asked for `KEEP_ALIVE_S` seconds, and one that takes nothing of what waits for it for `STALL_S` seconds."""

    _request_timer: Wait | None = None
    _is_in_head = False
    _stall_timer: Wait | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # begun by uvicorn, with its own idea of time
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_request_timer()
        self._stop_stall_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer = Wait(self.loop, STALL_S, self._drop)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_stall_timer()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_request(self) -> None:
        """Begins the wait for the next request, or for the rest of its head; one that has begun goes on.

        What is left of the body of a request that was refused before it came whole has the time of an idle connection.
        """
        if self._is_answering or self.transport.is_closing():
            self._stop_request_timer()
            return
        is_in_head = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if self._request_timer is None or is_in_head != self._is_in_head:
            self._stop_request_timer()
            self._is_in_head = is_in_head
            self._request_timer = Wait(self.loop, HEAD_S if is_in_head else KEEP_ALIVE_S, self._give_up)

    def _give_up(self) -> None:
        self._request_timer = None
        if not self._is_answering:
            log.debug("%s asked for nothing%s: closed", self.client, " whole" if self._is_in_head else "")
            self.transport.close()

    def _drop(self) -> None:
        log.debug("%s takes nothing of its answer: closed", self.client)
        self.transport.abort()

    def _stop_request_timer(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
