"""`puna replay`: runs recorded steps again and compares every token."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def replay(
    recording: Annotated[Path, typer.Argument(help="A file that `--record` wrote.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The model. Default: the one that was recorded.")
    ] = None,
) -> None:
    """Run a recording again on this machine; exit code 1 where anything differs."""
    from puna.engine.replay import replay as run

    report = run(recording, model=model)
    print(report)
    if not report.exact:
        raise typer.Exit(1)
