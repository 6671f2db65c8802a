"""A file of requests answered without a server: the same application, asked in this process, writing as it goes.

The output file is its own record of what is done: a run that was killed goes on with the lines that are not in it. What
a line means and what its answer looks like is batch_lines.py's.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from puna.engine.config import EngineConfig
from puna.engine.supervisor import Supervisor
from puna.errors import InputError
from puna.server.app import make_app
from puna.server.batch_lines import BatchLine, LineError, answer_line, parse, run_lines
from puna.server.listening import make_serving
from puna.server.loopback import LoopbackAnswer, ask
from puna.server.options import ServeOptions


@dataclass
class OfflineRun:
    """Counts of lines. `before`: answered by an earlier run."""

    total: int = 0
    before: int = 0
    good: int = 0
    bad: int = 0
    tokens: int = 0
    interrupted: bool = False


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Body(msgspec.Struct):
    usage: _Usage | None = None


class _Done(msgspec.Struct):
    custom_id: str


def check_lines(source: Path) -> list[str]:
    """The ids of all lines. InputError for the first line that is wrong, with its number."""
    ids: list[str] = []
    for line in parse(source, None):
        if isinstance(line, LineError):
            where = f"{source}, line {line.line}" if line.line is not None else str(source)
            raise InputError(f"{where}: {line.message}")
        ids.append(line.custom_id)
    return ids


def answered_before(target: Path) -> set[str]:
    """The ids in an output file. A last line that was cut off while it was written is cut away.

    InputError where the file is none of ours: nothing is overwritten.
    """
    if not target.exists():
        return set()
    found: set[str] = set()
    whole = 0
    with target.open("rb") as opened:
        for number, line in enumerate(opened, 1):
            if not line.endswith(b"\n"):
                break
            try:
                found.add(msgspec.json.decode(line, type=_Done).custom_id)
            except msgspec.MsgspecError:
                raise InputError(f"{target}, line {number}, is no answer of a batch; name another --output") from None
            whole += len(line)
    with target.open("r+b") as opened:
        opened.truncate(whole)
    return found


async def run_file(
    config: EngineConfig, name: str, source: Path, target: Path, on_change: Callable[[OfflineRun], None]
) -> OfflineRun:
    """Answers the lines of `source` that `target` does not have. Ctrl-C ends it behind the answers that are written."""
    ids = check_lines(source)
    done = answered_before(target)
    run = OfflineRun(total=len(ids), before=sum(one in done for one in ids))
    if run.before == run.total:
        return run
    client = await Supervisor.start(config)
    try:
        serving = await make_serving(client, ServeOptions(names=(name,)))
        app = make_app(serving)

        async def ask_here(path: str, body: bytes) -> LoopbackAnswer:
            return await ask(app, path, body, serving)

        with target.open("ab") as opened:
            work = asyncio.create_task(
                run_lines(
                    _missing(source, done),
                    ask_here,
                    _writer(opened, run, on_change),
                    at_once=client.info.config.max_seqs,
                )
            )
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, work.cancel)
            try:
                await work
            except asyncio.CancelledError:
                run.interrupted = True
    finally:
        await client.close()
    return run


def _missing(source: Path, done: set[str]) -> Iterator[BatchLine]:
    for line in parse(source, None):
        if isinstance(line, BatchLine) and line.custom_id not in done:
            yield line


def _writer(
    opened: IO[bytes], run: OfflineRun, on_change: Callable[[OfflineRun], None]
) -> Callable[[BatchLine, LoopbackAnswer], Awaitable[None]]:
    async def write(line: BatchLine, answer: LoopbackAnswer) -> None:
        good, written = answer_line(line, answer)
        opened.write(written + b"\n")
        opened.flush()
        run.good += good
        run.bad += not good
        if good:
            usage = msgspec.json.decode(answer.body, type=_Body).usage
            run.tokens += usage.completion_tokens if usage else 0
        on_change(run)

    return write
