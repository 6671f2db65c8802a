"""The asyncio side of an engine that runs in its own process: requests in, streams of updates out.

It starts the process, hands every message on to the request it belongs to, tells the truth about the engine's health,
and raises in every live stream if the engine dies. It belongs to one event loop. Nothing here knows text.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import msgspec

from puna.engine.config import EngineConfig
from puna.engine.launch import EngineProcess, launch
from puna.engine.messages import (
    LENGTH,
    Abort,
    EngineInfo,
    Failed,
    FromEngine,
    Ready,
    Refused,
    Start,
    Stepped,
    Stop,
    ToEngine,
    as_error,
    check_length,
    frame,
)
from puna.engine.params import EngineRequest, SampleUpdate
from puna.engine.stats import EngineStats
from puna.errors import EngineError, InputError, PunaError

UNHEALTHY_S = 1.5  # work that has not moved for so long is told by `health`
_LOOK_S = 0.1  # how often the progress counter is looked at
_MISSED_S = 0.5  # what counts at most between two looks: for longer this process did not run, so others may not have
_EXIT_S = 5.0  # how long a process that was told to stop may take before it is killed


class HeldError(EngineError):
    """A request was taken out of the engine by `EngineClient.hold`, to go on later."""


@dataclass(frozen=True)
class EngineHealth:
    """`alive`: the process runs, and is idle or moves. `stalled_s`: since when work that is there has not moved."""

    alive: bool
    pid: int
    exit_code: int | None
    progress: int
    steps: int
    in_step: bool
    last_step_age_s: float
    stalled_s: float
    live_requests: int
    stats: EngineStats | None


@dataclass(eq=False)
class _Stream:
    """A live request: which samples still run, what arrived for it, and how many tokens in all (of beams: how far they
    are). `said` counts the messages that the engine was sent up to this request: what it tells of fewer is about an
    earlier one of its name."""

    running: set[int]
    said: int
    arrived: asyncio.Queue[SampleUpdate | PunaError] = field(default_factory=asyncio.Queue)
    received: int = 0

    def put(self, update: SampleUpdate) -> None:
        if update.searched_tokens:  # nothing for the reader yet
            self.received = update.searched_tokens
        elif update.index in self.running:
            self.received += len(update.token_ids)
            if update.finish_reason is not None:
                self.running.discard(update.index)
            self.arrived.put_nowait(update)

    def put_token(self, request_id: str, index: int, token: int) -> None:
        if index in self.running:
            self.received += 1
            self.arrived.put_nowait(SampleUpdate(request_id=request_id, index=index, token_ids=[token]))


class EngineClient:
    """Made by `EngineClient.start`. `info` is what the engine told of itself."""

    info: EngineInfo
    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter
    _tasks: list[asyncio.Task[None]]

    def __init__(self, process: EngineProcess) -> None:
        self._process = process
        self._streams: dict[str, _Stream] = {}
        self._roster: list[tuple[_Stream | None, str, int]] = []  # whose the tokens of a step's column are
        self._said = 0  # messages sent to the engine since Start
        self._stats: EngineStats | None = None
        self._failure: EngineError | None = None
        self._closing = False
        self.ended = asyncio.Event()  # set when the engine is gone, whatever became of it
        self.alive_at_end: dict[str, int] = {}  # requests that it still drew for, and the tokens it had brought each
        self.brought_tokens = False
        self._progress = -1
        self._looked_s = time.monotonic()
        self._stalled_s = 0.0  # for how long the progress counter was seen not to move
        self._decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)

    @classmethod
    async def start(cls, config: EngineConfig) -> EngineClient:
        """Starts the process and waits until the model is loaded. Raises the error that the engine met, or EngineError
        if it died without one. Cancelling this ends the process."""
        process = launch()
        client = cls(process)
        try:
            client._reader, client._writer = await asyncio.open_connection(sock=process.connection)
            client._writer.write(frame(Start(config)))
            await client._drain()
            first = await client._receive()
            if isinstance(first, Failed):
                raise as_error(first)
            if not isinstance(first, Ready):
                raise EngineError(await client._obituary("while it loaded the model"))
        except BaseException:
            client._end_now()
            raise
        client.info = first.info
        client._tasks = [asyncio.create_task(client._dispatch()), asyncio.create_task(client._watch())]
        return client

    async def generate(self, request: EngineRequest) -> AsyncGenerator[SampleUpdate]:
        """Updates of all samples of `request` until each has finished. Closing the iterator aborts what still runs.

        Raises InputError, MemoryBudgetError or OverloadedError where the engine refuses the request, EngineError if
        the engine dies.
        """
        self._check_alive()
        if request.request_id in self._streams:
            raise InputError(f"request_id {request.request_id!r} is in use; give every request its own")
        message = frame(request)
        self._said += 1
        self._writer.write(message)
        running = set(range(request.params.samples)) - set(request.done)
        stream = self._streams[request.request_id] = _Stream(set(running), self._said)
        open_samples = running
        try:
            await self._drain()
            while open_samples:
                update = await stream.arrived.get()
                if isinstance(update, PunaError):
                    stream.running.clear()
                    raise update
                if update.finish_reason is not None:
                    open_samples.discard(update.index)
                yield update
        finally:
            del self._streams[request.request_id]
            if stream.running:
                self._write(Abort(request.request_id))

    async def abort(self, request_id: str, index: int | None = None) -> None:
        """Ends a request, or one sample of it, in the engine; its stream gets updates with finish_reason "abort".
        Unknown ones are fine: they have just finished."""
        stream = self._streams.get(request_id)
        if stream is None:
            return
        ending = sorted(stream.running if index is None else stream.running & {index})
        if not ending:
            return
        for sample in ending:
            stream.put(SampleUpdate(request_id=request_id, index=sample, token_ids=[], finish_reason="abort"))
        self._write(Abort(request_id, index))
        await self._drain()

    def hold(self, request_id: str) -> None:
        """Takes a request out of the engine. Its stream raises HeldError behind what has arrived for it."""
        stream = self._streams.get(request_id)
        if stream is not None and stream.running:
            stream.running.clear()
            stream.arrived.put_nowait(HeldError("the request waits until others have been tried"))
            self._write(Abort(request_id))

    async def wait_exit(self) -> str:
        """How the process ended, once `ended` is set; one that does not end by itself is killed."""
        return describe_exit(await asyncio.to_thread(self._process.end, _EXIT_S))

    @property
    def place(self) -> tuple[int, int]:
        """How far its work has come, or had when it died: steps and operators."""
        return self._process.board.steps, self._process.board.operators

    def received(self, request_id: str) -> int:
        """Tokens that arrived for a live request, whether its reader has taken them or not."""
        stream = self._streams.get(request_id)
        return 0 if stream is None else stream.received

    def unread(self, request_id: str) -> int:
        """Updates that wait for the reader of a live request."""
        stream = self._streams.get(request_id)
        return 0 if stream is None else stream.arrived.qsize()

    def runs(self, request_id: str) -> bool:
        """Whether the engine still draws for a request."""
        stream = self._streams.get(request_id)
        return stream is not None and bool(stream.running)

    def kill(self) -> None:
        """Ends the process as it stands. Its streams raise EngineError."""
        self._process.child.kill()

    def health(self) -> EngineHealth:
        """The truth about the engine at this moment."""
        exit_code, board = self._process.exit_code(), self._process.board
        self._look()
        return EngineHealth(
            alive=exit_code is None and self._failure is None and self._stalled_s < UNHEALTHY_S,
            pid=self._process.pid,
            exit_code=exit_code,
            progress=self._progress,
            steps=board.steps,
            in_step=board.in_step,
            last_step_age_s=time.monotonic() - board.stamped_s if board.stamped_s else 0.0,
            stalled_s=self._stalled_s,
            live_requests=len(self._streams),
            stats=self._stats,
        )

    @property
    def stats(self) -> EngineStats | None:
        """The figures after the last step; None before the first."""
        return self._stats

    async def close(self, *, drain_s: float = 0.0) -> None:
        """Lets live requests finish for up to `drain_s`, then ends the process and waits for it. Streams that are still
        open raise EngineError. May be called twice."""
        until = time.monotonic() + drain_s
        while self._streams and self._failure is None and time.monotonic() < until:
            await asyncio.sleep(0.02)
        self._closing = True
        self._write(Stop())
        with contextlib.suppress(OSError):
            self._writer.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail(EngineError("the engine was closed"))
        await asyncio.to_thread(self._process.end, _EXIT_S)

    async def _dispatch(self) -> None:
        while True:
            try:
                message = await self._receive()
            except EngineError as error:
                self._fail(error)
                return
            match message:
                case Stepped():
                    try:
                        self._hand_out(message)
                    except ValueError:
                        self._fail(EngineError("the engine's tokens do not fit its roster; it was ended"))
                        self._end_now()
                        return
                case Refused():
                    if (stream := self._stream(message.request_id, message.heard)) is not None:
                        stream.running.clear()
                        stream.arrived.put_nowait(as_error(message))
                case None:
                    self._fail(EngineError(await self._obituary(f"with {len(self._streams)} requests alive")))
                    return
                case _:
                    self._fail(EngineError(f"the engine sent {type(message).__name__} out of turn; it was ended"))
                    self._end_now()
                    return

    def _hand_out(self, message: Stepped) -> None:
        """ValueError where there are tokens for more or fewer samples than the roster has."""
        if message.stats is not None:
            self._stats = message.stats
        self.brought_tokens |= bool(message.tokens or message.updates)
        if message.roster is not None:
            self._roster = [(self._stream(name, message.heard), name, i) for name, i in message.roster]
        owners = self._roster if message.tokens else []
        for (owner, request_id, i), token in zip(owners, message.tokens, strict=True):
            if owner is not None and token >= 0:
                owner.put_token(request_id, i, token)
        for update in message.updates:
            if (stream := self._stream(update.request_id, message.heard)) is not None:
                stream.put(update)

    def _stream(self, request_id: str, heard: int) -> _Stream | None:
        """The live request that the engine means when it has acted on `heard` messages."""
        stream = self._streams.get(request_id)
        return stream if stream is not None and stream.said <= heard else None

    async def _watch(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(_LOOK_S)

    def _look(self) -> None:
        board = self._process.board
        is_working = board.in_step or any(stream.running for stream in self._streams.values())
        now = time.monotonic()
        passed_s, self._looked_s = now - self._looked_s, now
        if (progress := board.operators + board.steps) != self._progress or not is_working:
            self._progress, self._stalled_s = progress, 0.0
        else:
            self._stalled_s += min(passed_s, _MISSED_S)

    async def _receive(self) -> FromEngine | None:
        """The next message, or None when the engine is gone."""
        try:
            (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
            check_length(length)
            return self._decoder.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError):
            return None
        except (msgspec.MsgspecError, InputError) as error:
            self._end_now()
            raise EngineError(f"the engine's message was not understood ({error}); it was ended") from error

    async def _obituary(self, when: str) -> str:
        code = await asyncio.to_thread(self._process.end, _EXIT_S)
        return f"the engine process (pid {self._process.pid}) {describe_exit(code)} {when}"

    def _fail(self, error: EngineError) -> None:
        if self._failure is None:
            self._failure = error
            self.alive_at_end = {name: stream.received for name, stream in self._streams.items() if stream.running}
        self.ended.set()
        for stream in self._streams.values():
            if stream.running:
                stream.running.clear()
                stream.arrived.put_nowait(self._failure)

    def _let_go(self) -> None:
        """Takes the socket from the event loop before it is closed: its number may soon be another socket's."""
        if (writer := getattr(self, "_writer", None)) is not None:
            writer.transport.abort()

    def _end_now(self) -> None:
        self._let_go()
        self._process.kill()

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise EngineError(str(self._failure))

    def _write(self, message: ToEngine) -> None:
        if self._failure is None and not self._writer.is_closing():
            self._said += 1
            self._writer.write(frame(message))

    async def _drain(self) -> None:
        """Waits while the engine is behind with reading. That it is gone is `_dispatch`'s to tell."""
        with contextlib.suppress(OSError):
            await self._writer.drain()


def describe_exit(code: int | None) -> str:
    """-9 -> 'was killed by SIGKILL (exit code -9)'."""
    if code is None:
        return "does not end"
    if code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            hint = "; memory may have run out" if name == "SIGKILL" and os.name == "posix" else ""
            return f"was killed by {name} (exit code {code}{hint})"
    return f"ended with exit code {code}"
