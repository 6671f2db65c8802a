"""`puna keys`: makes, lists and takes away the keys in a file that `puna serve --keys` reads.

A key is shown once, when it is made; the file has its hash. What people wrote into the file beside keys, comments and
limits, stays as it is.
"""

from __future__ import annotations

import datetime
import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from puna.errors import InputError

app = typer.Typer(name="keys", help="Make and take away keys of a server.", no_args_is_help=True)

File = Annotated[Path, typer.Option("--file", "-f", help="The file of keys.")]
DEFAULT_FILE = Path("keys.toml")
_HEADER = "[[keys]]"


@app.command()
def add(
    tenant: Annotated[str, typer.Argument(help="Whom it names: letters, digits, dots, dashes, underscores.")],
    admin: Annotated[bool, typer.Option("--admin", help="A key for /admin, not for requests to the model.")] = False,
    file: File = DEFAULT_FILE,
) -> None:
    """Make a key, print it, and keep its hash."""
    from puna.server.keys import KeyEntry, hash_key, new_key, parse_key_file

    key = new_key()
    entry = KeyEntry(tenant=tenant, sha256=hash_key(key), admin=admin)
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    lines = [_HEADER, f'tenant = "{entry.tenant}"', f'sha256 = "{entry.sha256}"', f"created = {created}"]
    before = _text(file)
    text = "\n".join(
        [*([before.rstrip("\n"), ""] if before.strip() else []), *lines, *(["admin = true"] if admin else [])]
    )
    parse_key_file(text, str(file))
    _write(file, text + "\n")
    typer.echo(f"the key of {tenant}, shown this once; {file} has its hash ({entry.id}):", err=True)
    typer.echo(key)


@app.command("list")
def list_keys(file: File = DEFAULT_FILE) -> None:
    """Show whom the keys name, and the names of the keys."""
    from puna.server.keys import read_key_file

    for entry in read_key_file(file).keys:
        created = "" if entry.created is None else entry.created.isoformat()
        typer.echo(f"{entry.id}  {'admin' if entry.admin else 'tenant':6}  {entry.tenant:24}  {created}".rstrip())


@app.command()
def remove(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `puna keys list` shows it.")],
    file: File = DEFAULT_FILE,
) -> None:
    """Take a key away."""
    from puna.server.keys import parse_key_file, read_key_file

    found = [entry for entry in read_key_file(file).keys if entry.id == key_id]
    if not found:
        raise InputError(f"there is no key {key_id[:80]!r} in {file}; `puna keys list` shows what there is")
    text = _without(_text(file), found[0].sha256)
    if any(entry.id == key_id for entry in parse_key_file(text, str(file)).keys):
        raise InputError(f"{file} is not written as `puna keys add` writes it; take {found[0].sha256} out by hand")
    _write(file, text)


def _without(text: str, sha256: str) -> str:
    """The file without the table in which `sha256` stands, which goes on up to the next header; its comments stay."""
    tables: list[list[str]] = [[]]
    for line in text.splitlines(keepends=True):
        if line.startswith("["):
            tables.append([])
        tables[-1].append(line)
    for table in tables:
        if table and table[0].strip() == _HEADER and any(sha256 in line for line in table):
            table[:] = [line for line in table if line.startswith("#")]
    return "".join(line for table in tables for line in table)


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except FileNotFoundError:
        return ""


def _write(file: Path, text: str) -> None:
    """All or nothing, and for the owner's eyes."""
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        if file.exists():
            os.chmod(name, file.stat().st_mode & 0o777)
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise
