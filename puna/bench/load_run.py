"""Sends a load to a server and notes what became of every request.

In an open loop a request's times count from the moment when it was due, however late it was sent, so a server that is
slow cannot slow down the load that measures it; how late the generator itself was is kept as well.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from puna.bench.load import Load, Session
from puna.bench.online import Server
from puna.bench.streaming import Answer, ask

FIRST_ID = 64  # numbers of prompts become token ids from here on: ids that stand for something in every model
# Short and common: most vocabularies have each as one token.
WORDS = (
    "sun", "hill", "rain", "river", "cloud", "field", "stone", "bird", "horse", "road", "bread", "salt", "wind",
    "tree", "leaf", "snow", "lake", "fire", "gold", "iron", "boat", "rope", "wool", "milk", "corn", "seed", "root",
    "moon", "star", "sand", "wave", "bell", "door", "roof", "wall", "floor", "chair", "table", "lamp", "book",
    "pen",
)  # fmt: skip


class Exchange(msgspec.Struct, frozen=True):
    """One request. `begun_s`: after the start of the run, when it was due or, in a closed loop, sent; the other times
    count from there. `client`: of a closed loop. `counts` is False for a client's first, where that is left out."""

    session: int
    turn: int
    client: int | None
    begun_s: float
    late_s: float
    first_s: float
    whole_s: float
    gaps_s: list[float]
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    error: str | None
    detail: str
    counts: bool

    @property
    def token_s(self) -> float:
        """Mean time between tokens; 0 where there is only one."""
        return (self.whole_s - self.first_s) / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0


class LoadRun(msgspec.Struct, frozen=True):
    """`processor_s`: what the generator itself used."""

    exchanges: list[Exchange]
    wall_s: float
    processor_s: float


def run_load(server: Server, load: Load, planned: list[Session], timeout_s: float) -> LoadRun:
    return asyncio.run(_Run(server, load, planned, timeout_s).run())


class _Run:
    def __init__(self, server: Server, load: Load, planned: list[Session], timeout_s: float) -> None:
        self._server, self._load, self._timeout_s = server, load, timeout_s
        self._planned = planned
        self._done: list[Exchange] = []
        self._start = 0.0

    async def run(self) -> LoadRun:
        processor, self._start = time.process_time(), time.perf_counter()
        if self._load.clients is not None:
            waiting = iter(self._planned)
            await asyncio.gather(*(self._client(number, waiting) for number in range(self._load.clients)))
        else:
            tasks = []
            for session in self._planned:
                assert session.due_s is not None
                await asyncio.sleep(max(0.0, self._start + session.due_s - time.perf_counter()))
                tasks.append(asyncio.create_task(self._session(session, None, counts=True)))
            await asyncio.gather(*tasks)
        wall_s = time.perf_counter() - self._start
        return LoadRun(self._done, wall_s, time.process_time() - processor)

    async def _client(self, number: int, waiting: Iterator[Session]) -> None:
        counts = not self._load.skip_first
        for session in waiting:
            await self._session(session, number, counts=counts)
            counts = True

    async def _session(self, session: Session, client: int | None, *, counts: bool) -> None:
        history: list[dict[str, str]] = []
        due = None if session.due_s is None else self._start + session.due_s
        for number, turn in enumerate(session.turns):
            if number:
                await asyncio.sleep(self._load.think_s)
                due = None
            path, body = self._body(session, number, history)
            sent = time.perf_counter()
            begun = sent if due is None else due
            is_last = number + 1 == len(session.turns)
            answer = await ask(self._server, path, msgspec.json.encode(body), self._timeout_s, keep_text=not is_last)
            self._done.append(self._exchange(session, number, client, begun, sent, answer, turn.output_len, counts))
            if answer.error is not None:
                return
            history.append({"role": "assistant", "content": "".join(answer.text)})

    def _body(self, session: Session, number: int, history: list[dict[str, str]]) -> tuple[str, dict[str, Any]]:
        load, turn = self._load, session.turns[number]
        body: dict[str, Any] = {
            "model": self._server.model,
            "max_tokens": turn.output_len,
            "temperature": load.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if load.ignore_eos:
            body["ignore_eos"] = True
        if load.endpoint == "completions":
            return "/completions", {**body, "prompt": [FIRST_ID + unit for unit in (*session.shared, *turn.units)]}
        if not number and session.shared:
            history.append({"role": "system", "content": _text(session.shared)})
        history.append({"role": "user", "content": _text(turn.units)})
        return "/chat/completions", {**body, "messages": history}

    def _exchange(
        self,
        session: Session,
        turn: int,
        client: int | None,
        begun: float,
        sent: float,
        answer: Answer,
        wanted: int,
        counts: bool,
    ) -> Exchange:
        times = answer.arrivals_s or [time.perf_counter()]
        tokens = answer.output_tokens or len(answer.arrivals_s)
        error, detail = answer.error, answer.detail
        if error is None and self._load.ignore_eos and tokens != wanted:
            error, detail = "another length", f"{tokens} tokens instead of {wanted}"
        return Exchange(
            session=session.number,
            turn=turn,
            client=client,
            begun_s=begun - self._start,
            late_s=sent - begun,
            first_s=times[0] - begun,
            whole_s=times[-1] - begun,
            gaps_s=[later - sooner for sooner, later in itertools.pairwise(times)],
            prompt_tokens=answer.prompt_tokens,
            output_tokens=tokens,
            cached_tokens=answer.cached_tokens,
            error=error,
            detail=detail,
            counts=counts,
        )


def _text(units: list[int]) -> str:
    return " ".join(WORDS[unit % len(WORDS)] for unit in units)
