"""`puna batch`: a file of requests in OpenAI's batch format, answered on this machine without a server."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from puna.cli import options
from puna.cli.option_group import takes_groups

if TYPE_CHECKING:
    from puna.server.offline import OfflineRun


@takes_groups
def batch(
    file: Annotated[
        Path, typer.Argument(help="JSON lines of requests, as /v1/batches takes them.", exists=True, dir_okay=False)
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: the file's name with .out.jsonl.")
    ] = None,
    model: options.Model = options.DEFAULT_MODEL,
    *,
    engine: options.EngineOptions,
    max_seqs: options.MaxSeqs = 64,
) -> None:
    """Answer a file of requests. Run it again to go on where it was interrupted: what is in the output stays.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...]}}
    """
    config = engine.config(model, max_seqs=max_seqs)
    target = output or file.with_name(file.name.removesuffix(".jsonl") + ".out.jsonl")
    if target.resolve() == file.resolve():
        raise typer.BadParameter("is the input itself", param_hint="--output")

    import asyncio

    from puna.cli.progress import PullProgress
    from puna.models.names import resolve
    from puna.server.offline import run_file

    with PullProgress() as progress:
        resolve(model, progress=progress)
    begun = time.monotonic()
    with _Bar() as bar:
        run = asyncio.run(run_file(config, model, file, target, bar.show))
    seconds = time.monotonic() - begun
    parts = [f"{run.good} of {run.total} lines answered"]
    if run.before:
        parts.append(f"{run.before} by an earlier run")
    if run.bad:
        parts.append(f"{run.bad} refused, with reasons in the file")
    speed = f"{run.tokens} tokens in {seconds:.1f} s ({run.tokens / seconds:.1f} tokens/s)" if run.tokens else ""
    print("; ".join(filter(None, [", ".join(parts), speed, str(target)])), file=sys.stderr)
    if run.interrupted:
        raise KeyboardInterrupt
    if run.bad:
        raise typer.Exit(1)


class _Bar:
    """On a terminal, once there is something to count."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
        self._begun = time.monotonic()

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, run: OfflineRun) -> None:
        if not self._bar.tasks:
            self._bar.add_task("answering", total=run.total, rate="")
        rate = f"{run.tokens / max(1e-3, time.monotonic() - self._begun):.0f} tokens/s"
        self._bar.update(self._bar.task_ids[0], completed=run.before + run.good + run.bad, rate=rate)
