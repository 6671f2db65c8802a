"""What every way of fetching a model shares: its result, the choice of a file, and the watch on what has arrived."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from puna.errors import ModelNotFoundError
from puna.models.sources import Progress, Source

POLL_S = 0.25


@dataclass(frozen=True)
class Fetched:
    """What a source delivered: a file in the working folder, the source with its version and file filled in, and the
    licence and SHA-256 that the source states, where it does."""

    path: Path
    source: Source
    licence: str | None = None
    sha256: str | None = None


def choose_file(wanted: str | None, files: list[str], where: str) -> str:
    """The file asked for, by its path or its bare name, or the only GGUF file there is. Raises ModelNotFoundError with
    the choices."""
    ggufs = sorted(file for file in files if file.endswith(".gguf"))
    listed = ", ".join(ggufs[:30]) + (", ..." if len(ggufs) > 30 else "")
    if not ggufs:
        raise ModelNotFoundError(f"{where} has no .gguf file")
    if wanted is None:
        if len(ggufs) == 1:
            return ggufs[0]
        raise ModelNotFoundError(f"{where} has several .gguf files; add one of them to the name: {listed}")
    matches = [file for file in ggufs if file == wanted] or [f for f in ggufs if f.rsplit("/", 1)[-1] == wanted]
    if len(matches) != 1:
        raise ModelNotFoundError(f"{where} has no file {wanted!r}; it has: {listed}")
    return matches[0]


@contextlib.contextmanager
def watching(folder: Path, total: int, what: str, progress: Progress) -> Iterator[None]:
    """Reports how much has arrived in a folder, while somebody else fills it."""
    done = threading.Event()

    def report() -> None:
        while not done.wait(POLL_S):
            progress(min(_bytes_in(folder), total) if total else _bytes_in(folder), total, what)

    watcher = threading.Thread(target=report, daemon=True, name="puna-pull-progress")
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _bytes_in(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            size += path.stat().st_size if path.is_file() else 0
    return size
