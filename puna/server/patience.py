"""The HTTP protocol of the server, with an end to its patience: who connects has to ask for something, and to listen.

uvicorn waits for ever for the lines of a request that come one by one, and for a client to take what was written for
it, so a few hundred idle sockets would use up file descriptors and memory. How long a body may take is `read_body`'s to
say, by the same clock. Time in which this process itself stood still (a laptop asleep, a machine that is overrun) tries
nobody's patience: clients may have stood still as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 20.0
STALL_S = 30.0
KEEP_ALIVE_S = 75.0  # between two requests: longer than clients keep connections, or one is closed as it is used again


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
    """Closes a connection whose request's head is not whole `HEAD_S` seconds after it could begin, and one that takes
    nothing of what waits for it for `STALL_S` seconds."""

    _head_timer: Wait | None = None
    _stall_timer: Wait | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = Wait(self.loop, HEAD_S, self._give_up)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_answering:
            self._stop_head_timer()
        elif self._head_timer is None:
            self._head_timer = Wait(self.loop, HEAD_S, self._give_up)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None:  # begun by uvicorn, with its own idea of time
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = Wait(self.loop, KEEP_ALIVE_S, self.timeout_keep_alive_handler)  # type: ignore[assignment]
        begun_on_next = bool(self.conn.trailing_data[0])
        if begun_on_next and not self._is_answering and self._head_timer is None:
            self._head_timer = Wait(self.loop, HEAD_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_stall_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer = Wait(self.loop, STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_stall_timer()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _give_up(self) -> None:
        self._head_timer = None
        if not self._is_answering:
            self.transport.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
