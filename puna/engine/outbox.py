"""Sends what steps brought to the other end of the socket: one message a step, and names only when they change.

Knows the news of an engine and the shape of messages; does not know who reads them. Figures are sent now and then, and
before the engine falls silent. Where the reader is gone, there is nobody to work for, and the process ends.
"""

from __future__ import annotations

import os
import socket
import time

from puna.engine.core import Engine
from puna.engine.messages import STATS_S, FromEngine, Stepped, frame
from puna.engine.news import Roster, StepNews


class Outbox:
    def __init__(self, engine: Engine, connection: socket.socket) -> None:
        self._engine = engine
        self._connection = connection
        self._roster: Roster | None = None  # the one that was sent last
        self._stats_sent_s = 0.0

    def send(self, news: StepNews, *, stats_asked: bool) -> None:
        """One message, or none where there is nothing to tell. `stats_asked`: with figures, however fresh the last."""
        begun = time.perf_counter()
        stats = None
        if stats_asked or begun - self._stats_sent_s >= STATS_S or not self._engine.has_work:
            stats, self._stats_sent_s = self._engine.stats(), begun
        tokens = news.tokens or []
        if not (tokens or news.updates or stats):
            return
        names = None
        if news.roster is not None and news.roster is not self._roster:
            self._roster, names = news.roster, news.roster.names
        send_message(self._connection, Stepped(tokens, names, news.updates, stats))
        self._engine.counters.transport_s += time.perf_counter() - begun


def send_message(connection: socket.socket, message: FromEngine) -> None:
    try:
        connection.sendall(frame(message))
    except OSError:
        os._exit(0)  # the client is gone
