"""`puna doctor`: is this machine ready to run models, and if not, what to do.

It prints what the checks of diagnosis.py found, as a table or as JSON.
"""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False) -> None:
    """Check Python, CPU, memory, disk and models, and run a self-test. Exit code 1 where something fails."""
    from puna.cli.diagnosis import diagnose

    checks = diagnose()
    if json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(checks), indent=2).decode())
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("check", "", "found", "what to do"):
            table.add_column(column, overflow="fold")
        colours = {"ok": "green", "warn": "yellow", "fail": "red"}
        for check in checks:
            table.add_row(check.name, Text(check.state, colours[check.state]), Text(check.found), Text(check.remedy))
        Console().print(table)
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(1)
