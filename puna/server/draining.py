"""The end of a server: no new work, time for what runs, then nothing.

It counts the work that runs and knows how long it may; who begins the end and what happens behind it is serve.py's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from puna.server.errors import RequestError

MAX_RETRY_S = 30.0


class Draining:
    """`grace_s`: what running work has from the moment on that `begin` is called."""

    def __init__(self, grace_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.running = 0
        self._grace_s = grace_s
        self._clock = clock
        self._until: float | None = None
        self._at_once = False

    def begin(self) -> None:
        """Called again it ends the server at once. May be called from a signal's handler."""
        if self._until is None:
            self._until = self._clock() + self._grace_s
        else:
            self._at_once = True

    @property
    def is_on(self) -> bool:
        return self._until is not None

    @property
    def is_urgent(self) -> bool:
        return self._at_once

    @property
    def is_over(self) -> bool:
        return self._until is not None and (self._at_once or not self.running or self._clock() >= self._until)

    @property
    def left_s(self) -> float:
        return 0.0 if self._until is None else max(0.0, self._until - self._clock())

    def check(self) -> None:
        """RequestError where new work comes too late."""
        if self.is_on:
            raise RequestError(
                "the server is going down and takes no new requests; send it again, to whatever runs here next",
                status=503,
                kind="server_error",
                code="draining",
                retry_after_s=min(MAX_RETRY_S, self.left_s + 1),
            )
