"""`puna models`: what is on this machine, and what can be pulled by name."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from puna.models.catalogue import CatalogueEntry
    from puna.models.store import StoredModel

WHOLE_LINE = 1000  # columns: nothing is folded where a program reads


def models(
    remove: Annotated[str | None, typer.Option("--remove", help="Delete this model's file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """List the models on this machine and those that can be pulled by name, or remove one."""
    from puna.models.names import list_catalogue, list_models, remove_model

    if remove is not None:
        print(f"removed {remove_model(remove).path}")
        return
    found = list_models()
    if json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
        return
    here = {name for model in found for name in model.names}
    _print_table(found, [entry for entry in list_catalogue() if entry.name not in here])


def _print_table(found: list[StoredModel], missing: list[CatalogueEntry]) -> None:
    from rich.console import Console
    from rich.table import Table

    from puna.engine.memory import format_bytes

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "size", "licence", "where"):
        table.add_column(column, overflow="fold")
    for model in found:
        name = min((model.source, *model.names), key=len)
        table.add_row(name, format_bytes(model.size), model.licence or "?", model.path)
    for entry in missing:
        table.add_row(entry.name, format_bytes(entry.size), entry.licence, f"puna pull {entry.name}", style="dim")
    Console(width=None if sys.stdout.isatty() else WHOLE_LINE, soft_wrap=True).print(table)
