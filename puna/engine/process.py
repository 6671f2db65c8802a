"""The engine's own process: `python -m puna.engine.process SOCKET_FD BOARD_FD`, started by `puna.engine.client`.

One thread reads messages into a bounded inbox; the main thread drains it between steps, runs steps while there is work
and sleeps otherwise. When the socket closes, because the client closed it or died, the process ends at once: there is
nothing here that the client does not know.
"""

from __future__ import annotations

import gc
import mmap
import os
import queue
import signal
import socket
import sys
import threading
import time
from typing import TypeVar

import msgspec
import numpy as np

from puna.engine.core import Engine
from puna.engine.memory import memory_table
from puna.engine.messages import (
    BOARD_BYTES,
    BOARD_STEP_NS,
    BOARD_STEPS,
    LENGTH,
    STATS_S,
    Abort,
    EngineInfo,
    Failed,
    FromEngine,
    MemoryLine,
    Ready,
    Refused,
    Start,
    Stepped,
    Stop,
    ToEngine,
    check_length,
    frame,
    kind_of,
)
from puna.engine.news import Roster, StepNews
from puna.engine.params import EngineRequest
from puna.errors import InputError, OverloadedError, PunaError

INBOX_MESSAGES = 1024
NOTHING = StepNews([])
T = TypeVar("T")


def main(socket_fd: int, board_fd: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the client decides what it means
    connection = socket.socket(fileno=socket_fd)
    board = mmap.mmap(board_fd, BOARD_BYTES)
    inbox: queue.Queue[ToEngine] = queue.Queue(INBOX_MESSAGES)
    threading.Thread(target=_read, args=(connection, inbox), name="inbox", daemon=True).start()
    start = inbox.get()
    if not isinstance(start, Start):
        raise SystemExit("the first message to an engine process has to be Start")
    try:
        engine = Engine(start.config, progress=np.frombuffer(board, np.uint64, 1))
        ready = Ready(_info(engine))
    except PunaError as error:
        _send(connection, Failed(kind_of(error), str(error), getattr(error, "param", None)))
        raise SystemExit(1) from None
    except MemoryError:
        _send(connection, Failed("MemoryBudgetError", "memory ran out while the model was loaded; lower kv_bytes"))
        raise SystemExit(1) from None
    _send(connection, ready)
    _serve(engine, connection, inbox, memoryview(board).cast("q"))


def _read(connection: socket.socket, inbox: queue.Queue[ToEngine]) -> None:
    """Feeds the inbox until the client is gone, then ends the process, whatever it is doing."""
    decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
    try:
        with connection.makefile("rb") as stream:
            while head := stream.read(LENGTH.size):
                (length,) = LENGTH.unpack(head)
                check_length(length)
                inbox.put(decoder.decode(stream.read(length)))
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        print(f"puna engine: the client's message was not understood ({error}); ending", file=sys.stderr)
    finally:
        os._exit(0)


def _serve(engine: Engine, connection: socket.socket, inbox: queue.Queue[ToEngine], board: memoryview) -> None:
    gc.collect()
    gc.freeze()  # the model and the modules stay: no collection needs to walk over them
    outbox = _Outbox(engine, connection)
    warned, heard = False, 0
    while True:
        news = _drain(inbox, wait=not engine.has_work)
        for message in news:
            if isinstance(message, Stop):
                engine.close()
                return
            heard += 1
            _handle(engine, connection, message, heard)
        brought = NOTHING
        if engine.has_work:
            _stamp(board)
            brought = engine.step()
            _stamp(board)
        for request_id, error in brought.refused:
            _refuse(connection, request_id, error, heard)
        outbox.send(brought, heard, stats_asked=bool(news))
        if engine.recording_failure is not None and not warned:
            warned = True
            print(f"puna engine: recording stopped: {engine.recording_failure}", file=sys.stderr)


class _Outbox:
    """Sends the news of steps, and says who is on the roster only when that changes."""

    def __init__(self, engine: Engine, connection: socket.socket) -> None:
        self._engine = engine
        self._connection = connection
        self._roster: Roster | None = None
        self._stats_sent_s = 0.0

    def send(self, news: StepNews, heard: int, *, stats_asked: bool) -> None:
        """One message, or none where there is nothing to tell. `heard`: messages acted on before the step;
        `stats_asked`: with figures, however fresh the last."""
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
        _send(self._connection, Stepped(heard, tokens, names, news.updates, stats))
        self._engine.counters.transport_s += time.perf_counter() - begun


def _drain(inbox: queue.Queue[T], *, wait: bool) -> list[T]:
    """All messages that are there; with `wait`, at least one."""
    news = [inbox.get()] if wait else []
    while not inbox.empty():  # nobody else takes from it
        news.append(inbox.get_nowait())
    return news


def _handle(engine: Engine, connection: socket.socket, message: ToEngine, heard: int) -> None:
    match message:
        case EngineRequest():
            try:
                engine.add(message)
            except PunaError as error:
                _refuse(connection, message.request_id, error, heard)
        case Abort():
            engine.abort(message.request_id, message.index)


def _refuse(connection: socket.socket, request_id: str, error: PunaError, heard: int) -> None:
    retry = error.retry_after_s if isinstance(error, OverloadedError) else None
    param = error.param if isinstance(error, InputError) else None
    _send(connection, Refused(heard, request_id, kind_of(error), str(error), param, retry))


def _stamp(board: memoryview) -> None:
    board[BOARD_STEP_NS] = time.monotonic_ns()
    board[BOARD_STEPS] += 1


def _send(connection: socket.socket, message: FromEngine) -> None:
    try:
        connection.sendall(frame(message))
    except OSError:
        os._exit(0)  # the client is gone


def _info(engine: Engine) -> EngineInfo:
    model, interpreter, memory = engine.backend.model, engine.backend.interpreter, engine.backend.memory
    return EngineInfo(
        pid=os.getpid(),
        model_name=model.name,
        model_path=str(model.path),
        model_fingerprint=model.fingerprint,
        fingerprint=interpreter.fingerprint,
        vocab_size=model.program.vocab_size,
        max_model_len=engine.max_model_len,
        num_blocks=memory.kv.num_blocks,
        block_size=memory.kv.block_size,
        batch_invariant=interpreter.batch_invariant,
        config=engine.config,
        memory=[MemoryLine(*line) for line in memory_table(memory)],
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
