"""Keeps an engine running. When its process dies or hangs another is started, and what was alive goes on in it.

To whoever asks it has the face of an `EngineClient`. A request's stream outlives engines: it goes on from the tokens
that its reader has, and ends as if nothing had happened. New requests wait meanwhile, up to the admission limit.
Engines that die without having brought anyone a token are started again ever later. A request whose reader does not
read leaves the engine, and goes on when it does. It belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Literal

from puna.engine.client import UNHEALTHY_S, EngineClient, EngineHealth
from puna.engine.config import EngineConfig
from puna.engine.messages import EngineInfo
from puna.engine.meter import Meter
from puna.engine.params import EngineRequest, SampleUpdate
from puna.engine.resumable import Resumable
from puna.engine.stats import EngineStats, totals
from puna.engine.trials import Trials
from puna.errors import CulpritError, EngineError, InputError, OverloadedError, PunaError

HANG_S = 10.0  # an engine whose work has not moved for so long is ended
START_S = 900.0  # a model that takes longer to load does not come any more
DELAYS_S = (0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # before another start, by deaths in vain
LOOP_DEATHS = 4  # so many deaths in vain are a crash loop: what waits is refused
UNREAD_UPDATES = 1024  # a request whose reader is further behind leaves the engine until it has read them
_LOOK_S = 0.05

log = logging.getLogger("puna.engine")
State = Literal["running", "restarting", "crash loop", "closed"]


class Supervisor:
    """Made by `Supervisor.start`. `info` is what the newest engine told of itself."""

    info: EngineInfo
    _task: asyncio.Task[None]

    def __init__(self, client: EngineClient, hang_s: float) -> None:
        self.info = client.info
        self.restarts = 0
        self.culprits = 0
        self._config = client.info.config  # settled: a new engine has the same pool and the same limits
        self._hang_s = hang_s
        self._client: EngineClient | None = client
        self._last = client
        self._past: EngineStats | None = None  # of the engines before it
        self.meter = Meter(client.info.max_model_len)
        self._down_since = 0.0
        self._in_vain = 0
        self._closing = False
        self._live: dict[str, Resumable] = {}
        self._engines: dict[Resumable, EngineClient] = {}  # where each is, or was last
        self._trials = Trials()
        self._turn = asyncio.Event()  # of the present; who waits for a turn looks again when it is set

    @classmethod
    async def start(cls, config: EngineConfig, *, hang_s: float = HANG_S) -> Supervisor:
        """Starts the first engine. Raises the error that it met: there is nothing yet that would have to survive it."""
        supervisor = cls(await EngineClient.start(config), hang_s)
        supervisor._task = asyncio.create_task(supervisor._supervise())
        return supervisor

    async def generate(self, request: EngineRequest) -> AsyncGenerator[SampleUpdate]:
        """As `EngineClient.generate`, through any number of engines.

        Raises InputError, MemoryBudgetError or OverloadedError where the request is refused, CulpritError where it
        kills engines, EngineError where there is no engine to be had any more.
        """
        if request.request_id in self._live:
            raise InputError(f"request_id {request.request_id!r} is in use; give every request its own")
        live = self._live[request.request_id] = Resumable(request)
        try:
            while not live.finished:
                client = await self._engine_for(live)
                self._engines[live] = client
                try:
                    async with aclosing(client.generate(live.rest())) as updates:
                        async for update in updates:
                            live.admitted = True
                            if live.take(update):
                                yield update
                except EngineError:
                    live.admitted = True  # it was taken, or would have been
        finally:
            del self._live[request.request_id]
            self._engines.pop(live, None)
            self._trials.remove(live)
            self._announce()

    async def abort(self, request_id: str, index: int | None = None) -> None:
        """Ends a request, or one sample of it; its stream gets updates with finish_reason "abort"."""
        live = self._live.get(request_id)
        if live is not None and (client := self._engines.get(live)) is not None:
            await client.abort(request_id, index)

    @property
    def stats(self) -> EngineStats | None:
        """The figures of the newest engine after its last step; None before the first."""
        return self._last.stats

    @property
    def totals(self) -> EngineStats | None:
        """As `stats`, with everything that is counted summed over all engines since the start."""
        return totals(self._past, self._last.stats)

    @property
    def state(self) -> State:
        if self._closing:
            return "closed"
        if self._client is not None:
            return "running"
        return "crash loop" if self._in_vain >= LOOP_DEATHS else "restarting"

    @property
    def waiting(self) -> int:
        """Requests that wait for an engine."""
        return sum(live.waits for live in self._live.values())

    def health(self) -> EngineHealth:
        """The truth about the engine at this moment. A restart that takes long counts as work that does not move."""
        health = replace(self._last.health(), live_requests=len(self._live))
        if self._client is not None:
            return health
        down_s = time.monotonic() - self._down_since
        return replace(health, alive=down_s < UNHEALTHY_S and self.state != "crash loop", stalled_s=down_s)

    async def close(self, *, drain_s: float = 0.0) -> None:
        """Lets live requests finish for up to `drain_s`, then ends the engine. Streams that are still open raise
        EngineError. May be called twice."""
        until = time.monotonic() + drain_s
        while self._live and time.monotonic() < until:
            await asyncio.sleep(0.02)
        self._closing = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._announce()
        await self._last.close()

    async def _engine_for(self, live: Resumable) -> EngineClient:
        """Waits until there is an engine and it is the request's turn."""
        waiting = self.waiting
        if not self._may_enter(live) and not live.admitted and waiting >= self._config.max_waiting_seqs:
            raise OverloadedError(
                f"{waiting} requests wait for the engine to come back, the queue takes "
                f"{self._config.max_waiting_seqs} (max_waiting_seqs); try again later",
                retry_after_s=2.0,
            )
        live.waits = True
        try:
            while not self._may_enter(live):
                if live.culprit is not None:
                    raise CulpritError(live.culprit)
                if self._closing:
                    raise EngineError("the engine was closed")
                if self.state == "crash loop":
                    raise EngineError("the engine dies again and again; it is started again ever later, see the log")
                await self._turn.wait()
        finally:
            live.waits = False
        assert self._client is not None
        return self._client

    def _may_enter(self, live: Resumable) -> bool:
        is_up = self._client is not None and not self._client.ended.is_set() and not self._closing
        return is_up and live.culprit is None and self._trials.may_run(live)

    def _announce(self) -> None:
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()

    async def _supervise(self) -> None:
        while True:
            assert self._client is not None
            await self._until_ended(self._client)
            self._down_since = time.monotonic()
            self._note_death(self._client, await self._client.wait_exit())
            await self._client.close()
            self._client = None
            self._announce()
            while self._client is None:
                await asyncio.sleep(DELAYS_S[min(self._in_vain, len(DELAYS_S) - 1)])
                self._client = await self._another()
            self._past = totals(self._past, self._last.stats)
            self._last = self._client
            self.info = self._client.info
            self.restarts += 1
            log.warning("another engine runs (pid %d), %d requests go on", self.info.pid, len(self._live))
            self._trials.choose()  # before anyone else enters, so that a trial's engine has done nothing but it
            self._announce()

    async def _another(self) -> EngineClient | None:
        try:
            async with asyncio.timeout(START_S):
                return await EngineClient.start(self._config)
        except (PunaError, OSError, TimeoutError) as error:
            self._in_vain += 1
            log.error("the engine could not be started again: %s", error)
            self._announce()
            return None

    async def _until_ended(self, client: EngineClient) -> None:
        """Ends a hung engine; sees to it that one suspect after the other has its trial, and that nobody who does not
        read fills up memory."""
        while not client.ended.is_set():
            self._try_suspects(client)
            for name in self._live:
                if client.unread(name) > UNREAD_UPDATES:
                    client.hold(name)
            if client.health().stalled_s >= self._hang_s:
                log.error("the engine (pid %d) has not moved for %.0f s; it is ended", client.info.pid, self._hang_s)
                client.kill()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(client.ended.wait(), _LOOK_S)

    def _try_suspects(self, client: EngineClient) -> None:
        """Looks how the one on trial gets on, and gives the engine to the next one alone."""
        suspect = self._trials.on_trial
        if suspect is not None and self._engines.get(suspect) is client:
            name = suspect.request.request_id
            self._trials.note_progress(suspect.gained(client.received(name)), runs=client.runs(name))
            if self._trials.on_trial is None:
                self._announce()
        if self._trials.choose() is not None:
            for live in self._live.values():
                client.hold(live.request.request_id)
            self._announce()

    def _note_death(self, client: EngineClient, how: str) -> None:
        brought = [(self._live[name], tokens) for name, tokens in client.alive_at_end.items() if name in self._live]
        alive = [(live, live.gained(tokens)) for live, tokens in brought]
        for live, tokens in brought:
            live.reached = max(live.reached, tokens)
        log.error("the engine (pid %d) %s with %d requests alive", client.info.pid, how, len(alive))
        if client.brought_tokens or self._trials.on_trial is not None:  # a death in a trial has its cause
            self._in_vain = 0
        else:
            self._in_vain += 1
        culprit = self._trials.note_death(alive, how, client.place)
        if culprit is not None:
            self.culprits += 1
            log.error("request %s: %s", culprit.request.request_id, culprit.culprit)
