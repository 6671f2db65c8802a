"""The folder that keeps pulled models, and the record beside each file.

    $PUNA_HOME, or $XDG_DATA_HOME/puna, or ~/.local/share/puna
      models/<folder made from the source>/<file>.gguf, <file>.gguf.json (a `StoredModel`)

A model appears under its name only when it is complete, checked and on the disk; until then it lies in a working
folder that goes away with the pull. One process pulls at a time. It knows nothing of networks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from puna.errors import InputError, ModelFileError

SCHEMA = 1
WORKING_PREFIX = ".pulling-"
SPARE_BYTES = 64 * 2**20  # left free on the disk whatever is pulled


class StoredModel(msgspec.Struct, frozen=True, kw_only=True):
    """`source` is the full name it was pulled by, with the version that was found; `names` are the short ones."""

    source: str
    names: list[str]
    path: str
    size: int
    sha256: str
    licence: str | None
    schema: int = SCHEMA


def models_home() -> Path:
    """The folder of the models; it need not exist yet. InputError where PUNA_HOME names none."""
    home, data = os.environ.get("PUNA_HOME"), os.environ.get("XDG_DATA_HOME")
    try:
        if home:
            return Path(home).expanduser() / "models"
        base = Path(data) if data and Path(data).is_absolute() else Path.home() / ".local" / "share"
    except RuntimeError:
        found = f"PUNA_HOME is {home!r}, but there is no such user" if home else "this user has no home folder"
        raise InputError(f"{found}; set PUNA_HOME to a folder for models", param="PUNA_HOME") from None
    return base / "puna" / "models"


def stored_models() -> list[StoredModel]:
    """All complete models, by source. A record that cannot be read, or whose file is gone or cut, is passed over."""
    found = []
    for record in sorted(models_home().glob("*/*.gguf.json")):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            model = msgspec.json.decode(record.read_bytes(), type=StoredModel)
            path = record.with_suffix("")  # where it lies now, should the home have moved
            if path.stat().st_size == model.size:
                found.append(msgspec.structs.replace(model, path=str(path)))
    return found


def remove_stored(model: StoredModel) -> None:
    path = Path(model.path)
    path.with_name(path.name + ".json").unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()


@contextlib.contextmanager
def pulling(source: str, progress: Callable[[int, int, str], None]) -> Iterator[Path]:
    """Gives a working folder, after any other pull on this machine has ended; removes it afterwards.

    An OSError in between (no space, no permission) becomes one ModelFileError and leaves nothing behind.
    """
    home = models_home()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with (home / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress(0, 0, "waiting for another pull to end")
                fcntl.flock(lock, fcntl.LOCK_EX)
            for abandoned in home.glob(f"{WORKING_PREFIX}*"):  # of a pull that was killed: we hold the lock
                shutil.rmtree(abandoned, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=WORKING_PREFIX, dir=home, ignore_cleanup_errors=True) as working:
                yield Path(working)
    except OSError as error:
        raise ModelFileError(f"{source} cannot be stored in {home}: {_reason(error)}") from error


def store(source: str, working_file: Path, model: StoredModel) -> Path:
    """Moves a complete file from the working folder to its place, first the bytes, then the record."""
    path = place_of(source, working_file.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sync(working_file)
    os.replace(working_file, path)
    record = working_file.with_name("record.json")
    record.write_bytes(msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(model, path=str(path)))))
    _sync(record)
    os.replace(record, path.with_name(path.name + ".json"))
    _sync(path.parent)
    return path


def place_of(source: str, file_name: str) -> Path:
    return models_home() / folder_name(source) / file_name


def folder_name(source: str) -> str:
    """A source without its file, as a name that no file system minds."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", source).strip(".-")[:100]


def check_space(needed: int, what: str) -> None:
    """Raises ModelFileError, saying how much is missing, before anything is written."""
    home = models_home()
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed + SPARE_BYTES:
        raise ModelFileError(
            f"{what} needs {_mebibytes(needed + SPARE_BYTES)} on the disk of {home}, which has {_mebibytes(free)} "
            "free; make room or point PUNA_HOME to another disk"
        )


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; make room or point PUNA_HOME to another disk"
    return f"{error.strerror or error}; is {models_home()} a folder that you may write to?"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
