"""Writes GGUF files and safetensors files tensor by tensor, and lets them appear only when they are whole.

A target is written under a name of its own beside its place, brought to the disk, and then moved; whatever ends the
work before that takes the unfinished file along.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from puna.errors import InputError
from puna.models.conversion.encoding import Target, encoded
from puna.models.conversion.working_folder import working_folder
from puna.models.gguf_format import DEFAULT_ALIGNMENT
from puna.models.gguf_write import header_bytes, padded

Progress = Callable[[int, int, str], None]  # bytes done, bytes in all, what is being done


def unseen(_done_bytes: int, _total_bytes: int, _what: str) -> None:
    """Progress that nobody watches."""


def unheard(_line: str) -> None:
    """What nobody is told."""


SPARE_BYTES = 64 << 20  # left free on the disk whatever is written


@contextmanager
def appearing(target: Path, needed_bytes: int, *, force: bool, folder: bool = False) -> Iterator[Path]:
    """Gives a path to write to, which becomes `target` at the end. Raises InputError where it is there already (unless
    `force`), where the disk has no room, and for whatever the system refuses."""
    check_free(target, force=force, folder=folder)
    try:
        free = shutil.disk_usage(target.parent).free
        if free < needed_bytes + SPARE_BYTES:
            raise InputError(
                f"{target} needs {_mebibytes(needed_bytes + SPARE_BYTES)} on its disk, which has {_mebibytes(free)} "
                "free; make room or name a place on another disk"
            )
        with working_folder(target) as working:
            part = working / "made"
            if folder:
                part.mkdir()
            yield part
            _bring_to_disk(part)
            _move(part, target, working)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full; make room or name a place on another disk" if full else error.strerror or str(error)
        raise InputError(f"{target} cannot be written: {reason}") from error


def check_free(target: Path, *, force: bool, folder: bool) -> None:
    """Raises InputError where nothing may be written; asked before any work is done. `folder`: a folder will be. Only
    what is a file, or a folder with a model, is ever replaced."""
    if not target.parent.is_dir():
        raise InputError(f"{target} cannot be written: there is no folder {target.parent}")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise InputError(f"{target} cannot be written: {target.parent} is not writable; name another place")
    if target.name in ("", ".."):
        raise InputError(f"{target} is no name of its own; name the target, as in {target / 'model'}")
    if not target.exists():
        return
    if target.is_dir() != folder or not (target.is_dir() or target.is_file()):
        kind = "a folder" if target.is_dir() else "no folder" if folder else "no regular file"
        raise InputError(f"{target} is there already, and is {kind}; name another target")
    if folder and not (target / "config.json").is_file():
        raise InputError(f"{target} is a folder without a model (config.json), which is not replaced; name another")
    if not force:
        raise InputError(f"{target} is there already; --force replaces it")


def write_gguf_file(path: Path, metadata: Mapping[str, Any], targets: Sequence[Target], progress: Progress) -> None:
    infos = [(target.name, target.type, target.shape, target.nbytes) for target in targets]
    with path.open("wb") as file:
        file.write(header_bytes(metadata, infos))
        _write_all(file, targets, progress, DEFAULT_ALIGNMENT)


def write_safetensors_file(path: Path, targets: Sequence[Target], progress: Progress) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for target in targets:
        offsets = [offset, offset + target.nbytes]
        header[target.name] = {"dtype": target.type, "shape": list(target.shape), "data_offsets": offsets}
        offset += target.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(padded(len(text), 8))
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        _write_all(file, targets, progress, 1)


def _write_all(file: IO[bytes], targets: Sequence[Target], progress: Progress, alignment: int) -> None:
    total = sum(target.source.nbytes for target in targets)
    done = 0
    for target in targets:
        written, left = 0, target.source.nbytes
        for piece in encoded(target):
            file.write(piece.data)
            written += len(piece)
            at = done + left * written // max(1, target.nbytes)
            progress(at, total, target.name)
        if written != target.nbytes:
            raise RuntimeError(f"{target.name}: {written} bytes written, {target.nbytes} promised")
        file.write(bytes(padded(written, alignment) - written))
        done += left


def _bring_to_disk(path: Path) -> None:
    for part in (*path.iterdir(), path) if path.is_dir() else (path,):
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _move(part: Path, target: Path, working: Path) -> None:
    if not target.is_dir():
        os.replace(part, target)
    else:  # a folder cannot be replaced in one step: the old one makes room, and goes with `working`
        try:
            os.rename(target, working / "replaced")
            os.replace(part, target)
        except BaseException:
            if not target.exists():
                os.rename(working / "replaced", target)
            raise
    _bring_to_disk_folder(target.parent)


def _bring_to_disk_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
