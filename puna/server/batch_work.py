"""Runs batches, one after the other, and goes on where a server before this one stopped.

A batch's record is written whenever its status changes, an answer as soon as it is there; so after a crash only what
was being answered is asked again. It knows the order of things; shapes over HTTP are batches.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import chain
from pathlib import Path

import msgspec

from puna.errors import PunaError
from puna.server.batch_lines import MAX_ERRORS, BatchLine, LineError, answer_line, missing_line, parse, run_lines
from puna.server.database import StateError
from puna.server.loopback import LoopbackAnswer
from puna.server.state import State

log = logging.getLogger("puna.server")

OPEN = ("validating", "in_progress", "finalizing", "cancelling")
STORAGE_WAIT_S = 2.0  # before it is tried again to write to a folder that could not be written to
_LOOK_S = 0.2


class Counts(msgspec.Struct):
    total: int = 0
    completed: int = 0
    failed: int = 0


class ErrorList(msgspec.Struct):
    data: list[LineError]
    object: str = "list"


class Batch(msgspec.Struct, kw_only=True):
    """As it lies on disk and as clients see it, but for `tenant`. Times are whole seconds since 1970."""

    id: str
    object: str = "batch"
    endpoint: str
    errors: ErrorList | None = None
    input_file_id: str
    completion_window: str
    status: str = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = msgspec.field(default_factory=Counts)
    metadata: dict[str, str] | None = None
    tenant: str = ""


class BatchWork:
    """`ask`: sends a body to a path of this server as a tenant. Belongs to one event loop."""

    def __init__(self, state: State, ask: Callable[[str, bytes, str], Awaitable[LoopbackAnswer]], at_once: int) -> None:
        self._state = state
        self._ask = ask
        self._at_once = at_once
        self._news = asyncio.Event()
        self._open: dict[str, Batch] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Takes up what a server before this one left."""
        bodies = self._state.batches()
        found = (msgspec.json.decode(body, type=Batch) for body in reversed(bodies))
        self._open = {batch.id: batch for batch in found if batch.status in OPEN}
        if self._open:
            log.warning("%d batches go on", len(self._open))
            self._news.set()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stops after what is being written; open batches go on when the next server starts."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def add(self, batch: Batch) -> None:
        await self._save(batch)
        self._open[batch.id] = batch
        self._news.set()

    async def cancel(self, batch_id: str) -> Batch | None:
        """None where it is over."""
        batch = self._open.get(batch_id)
        if batch is None:
            return None
        if batch.status != "cancelling":
            batch.status, batch.cancelling_at = "cancelling", _now()
            await self._save(batch)
        return batch

    def present(self, batch_id: str) -> Batch | None:
        """An open batch as it is at this moment, with counts that are not on disk yet."""
        return self._open.get(batch_id)

    def reads(self, file_id: str) -> bool:
        """Whether a batch that is not over needs a file."""
        return any(batch.input_file_id == file_id for batch in self._open.values())

    async def _run(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._open:
                batch = next(iter(self._open.values()))
                try:
                    await self._process(batch)
                except Exception as error:
                    if isinstance(error, StateError | OSError) and not isinstance(error, FileNotFoundError):
                        await self._wait_for_room(batch, error)
                        continue
                    # a bug, or somebody took the file away: other batches go on
                    log.exception("batch %s could not be run", batch.id)
                    await self._try_to_fail(batch, error)
                del self._open[batch.id]

    async def _wait_for_room(self, batch: Batch, error: Exception) -> None:
        """A full disk, say: what is written stays, clients see the reason in `errors`, and it is tried again."""
        log.error("batch %s waits, its folder cannot be written to: %s", batch.id, error)
        said = f"the server's folder cannot be written to ({error}); the batch goes on when it can"
        batch.errors = ErrorList([LineError("storage_unavailable", said)])
        while batch.errors is not None:
            await asyncio.sleep(STORAGE_WAIT_S)
            with contextlib.suppress(StateError, OSError):
                await self._save(msgspec.structs.replace(batch, errors=None))
                batch.errors = None

    async def _process(self, batch: Batch) -> None:
        path = self._state.path(batch.input_file_id)
        if batch.status not in OPEN:  # it was written that it is over, and no more
            await asyncio.to_thread(self._state.drop_answers, batch.id)
            return
        if batch.status == "validating":
            found = await asyncio.to_thread(_check, path, batch.endpoint)
            if isinstance(found, list):
                await self._fail(batch, found)
                return
            batch.request_counts.total = found
            if batch.status == "validating":
                batch.status, batch.in_progress_at = "in_progress", _now()
            await self._save(batch)
        answered = await asyncio.to_thread(self._state.answered, batch.id)
        counts = batch.request_counts
        counts.completed = sum(answered.values())
        counts.failed = len(answered) - counts.completed
        if batch.status == "in_progress":
            work = asyncio.create_task(self._answer(batch, answered))
            try:
                while not work.done() and batch.status == "in_progress" and _now() < batch.expires_at:
                    await asyncio.wait({work}, timeout=_LOOK_S)
            finally:
                if not work.done():
                    work.cancel()
                outcome = (await asyncio.gather(work, return_exceptions=True))[0]
            if isinstance(outcome, Exception):
                raise outcome
        await self._finish(batch)

    async def _answer(self, batch: Batch, answered: dict[int, bool]) -> None:
        async def ask(url: str, body: bytes) -> LoopbackAnswer:
            return await self._ask(url, body, batch.tenant)

        async def done(line: BatchLine, answer: LoopbackAnswer) -> None:
            good, written = answer_line(line, answer)
            await asyncio.to_thread(self._state.add_answer, batch.id, line.number, good, written)
            batch.request_counts.completed += good
            batch.request_counts.failed += not good

        await run_lines(self._missing(batch, answered), ask, done, at_once=self._at_once)

    def _missing(self, batch: Batch, answered: dict[int, bool]) -> Iterator[BatchLine]:
        for line in parse(self._state.path(batch.input_file_id), batch.endpoint):
            if isinstance(line, BatchLine) and line.number not in answered:
                yield line

    async def _finish(self, batch: Batch) -> None:
        """Writes the files. Until the record says so the answers stay, so a crash in here costs nothing."""
        answered = await asyncio.to_thread(self._state.answered, batch.id)
        ending = "completed" if len(answered) == batch.request_counts.total else "expired"
        if batch.status == "cancelling":
            ending = "cancelled"
        batch.finalizing_at = batch.finalizing_at or _now()
        if batch.status != "cancelling":
            batch.status = "finalizing"
        await self._save(batch)
        left = list(self._missing(batch, answered)) if ending != "completed" else []
        why = f"the batch was {ending} before this line was answered"
        unanswered = [missing_line(line, f"batch_{ending}", why) for line in left]
        if batch.output_file_id is None:  # else it was written before the disk was full
            batch.output_file_id = await asyncio.to_thread(self._write, batch, True, [])
        if batch.error_file_id is None:
            batch.error_file_id = await asyncio.to_thread(self._write, batch, False, unanswered)
        ended_at = _now()
        await self._save(msgspec.structs.replace(batch, status=ending, **{f"{ending}_at": ended_at}))
        batch.status = ending
        setattr(batch, f"{ending}_at", ended_at)
        await asyncio.to_thread(self._state.drop_answers, batch.id)

    def _write(self, batch: Batch, good: bool, more: list[bytes]) -> str | None:
        """A file of the batch's good or bad answers; None where there are none."""
        lines = self._state.answers(batch.id, good)
        first = next(lines, None)
        if first is None and not more:
            return None
        name = f"{batch.id}_{'output' if good else 'error'}.jsonl"
        with self._state.new_file(batch.tenant, name, "batch_output") as (file_id, opened):
            for line in chain([first] if first else [], lines, more):
                opened.write(line + b"\n")
        return file_id

    async def _fail(self, batch: Batch, errors: list[LineError]) -> None:
        batch.status, batch.failed_at, batch.errors = "failed", _now(), ErrorList(errors)
        await self._save(batch)

    async def _try_to_fail(self, batch: Batch, error: Exception) -> None:
        """Where not even that can be written, the batch goes on when the next server starts."""
        try:
            await self._fail(batch, [LineError("internal_error", f"the batch could not be run: {error}")])
        except PunaError as unwritten:
            log.error("batch %s: %s", batch.id, unwritten)

    async def _save(self, batch: Batch) -> None:
        body = msgspec.json.encode(batch)
        await asyncio.to_thread(self._state.save_batch, batch.id, batch.tenant, batch.created_at, body)


def _check(path: Path, endpoint: str) -> int | list[LineError]:
    """The number of lines, or the first errors."""
    errors: list[LineError] = []
    count = 0
    try:
        for line in parse(path, endpoint):
            if isinstance(line, LineError):
                errors.append(line)
                if len(errors) == MAX_ERRORS:
                    break
            count += 1
    except FileNotFoundError:
        return [LineError("file_not_found", "the input file was deleted")]
    return errors or count


def _now() -> int:
    return int(time.time())
