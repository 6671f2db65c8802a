"""Opens GGUF files: metadata and weights of a model, as views into the memory-mapped file.

A file comes from a stranger. Every count, length and offset is checked against the bytes that are really there before
anything is allocated or followed, so what a file can cost is bounded by its own size. Versions 2 and 3, little-endian.
This module knows the container; it does not know what the metadata mean (`families/`), nor how to decode a weight.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

from puna.errors import ModelFileError, ModelNotFoundError
from puna.kernels.tensor import RawTensor
from puna.models.gguf_format import DEFAULT_ALIGNMENT
from puna.models.gguf_parse import (
    Cursor,
    Value,
    brief,
    clipped,
    place_tensors,
    read_metadata,
    read_preamble,
    read_tensor_infos,
)


@dataclass(frozen=True)
class GgufFile:
    """A parsed header. `tensors` are read-only views into the mapped file; `data_start` is where their bytes begin."""

    path: Path
    version: int
    size: int
    data_start: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, RawTensor]
    content: memoryview

    def fail(self, message: str) -> NoReturn:
        raise ModelFileError(f"{self.path}: {clipped(message, 1500)}")

    def release_pages(self) -> None:
        """Gives back the memory of what was read so far; what is needed again comes from the system's cache of files.

        For when the weights were packed: the file's bytes would stay in memory beside what was made of them.
        """
        mapped = self.content.obj
        if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)

    def string(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            self.fail(f"metadata {key!r} is {brief(value)}; expected a string")
        return value

    def integer(self, key: str, default: int | None = None, *, least: int = 0, most: int = 2**31 - 1) -> int:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.fail(f"metadata {key!r} is {brief(value)}; expected a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: float | None = None, *, above: float = 0.0, most: float = 1e12) -> float:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= most:
            self.fail(f"metadata {key!r} is {brief(value)}; expected a number above {above:g} and up to {most:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            self.fail(f"metadata {key!r} is {brief(value)}; expected true or false")
        return value

    def _value(self, key: str, default: Value) -> Value:
        value = self.metadata.get(key, default)
        if value is None:
            self.fail(f"metadata {key!r} is missing; a model of this kind needs it")
        return value


def read_gguf(path: str | os.PathLike[str]) -> GgufFile:
    """Maps and parses a file. Raises ModelNotFoundError where there is none, ModelFileError where it is no good."""
    path = Path(path)
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ModelFileError(f"{path}: not a regular file; expected a GGUF model file")
            if status.st_size == 0:
                raise ModelFileError(f"{path}: the file is empty; expected a GGUF model file")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ModelFileError(f"{path}: a directory; expected a GGUF model file") from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from None
    return parse_gguf(mapped, path)


def parse_gguf(content: bytes | mmap.mmap, path: str | os.PathLike[str]) -> GgufFile:
    """Parses the bytes of a file; `path` is for messages. Raises ModelFileError."""
    cursor = Cursor(memoryview(content), Path(path))
    version, tensor_count, entry_count = read_preamble(cursor)
    metadata = read_metadata(cursor, entry_count)
    split_count = metadata.get("split.count", 0)
    if isinstance(split_count, int) and split_count > 1:
        cursor.fail(0, f"one of {split_count} parts of a split model", "a whole model in one file; merge the parts")
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        cursor.fail(0, f"general.alignment of {brief(alignment)}", "a power of two")
    infos = read_tensor_infos(cursor, tensor_count)
    data_start = -(-cursor.position // alignment) * alignment
    return GgufFile(
        path=Path(path),
        version=version,
        size=len(cursor.view),
        data_start=data_start,
        metadata=MappingProxyType(metadata),
        tensors=MappingProxyType(place_tensors(cursor, infos, data_start, alignment)),
        content=cursor.view,
    )


def _open_without_waiting(path: str, flags: int) -> int:
    """A named pipe must not block the open; for a regular file the flag means nothing."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
