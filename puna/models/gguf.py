"""Opens GGUF files: metadata and weights of a model, as views into the memory-mapped file.

A file comes from a stranger. Every count, length and offset is checked against the bytes that are really there before
anything is allocated or followed, so what a file can cost is bounded by its own size. Versions 2 and 3, little-endian.
This module knows the container; it does not know what the metadata mean (`families/`), nor how to decode a weight.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

from puna.errors import ModelFileError, ModelNotFoundError
from puna.kernels.tensor import RawTensor
from puna.models.facts import Facts
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
from puna.models.gguf_vocabulary import kind_of_vocabulary
from puna.models.model_file import Container
from puna.models.tokenizer import Tokenizer

SAMPLES = 64  # of the weights, for the fingerprint
SAMPLE_BYTES = 16_384


@dataclass(frozen=True)
class GgufFile:
    """A parsed header. `tensors` are read-only views into the mapped file; `data_start` is where their bytes begin.
    `others` are the further parts of a model that is split over files; its tensors are those of all."""

    path: Path
    version: int
    size: int
    data_start: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, RawTensor]
    content: memoryview
    others: tuple[GgufFile, ...] = ()

    @property
    def stored(self) -> Mapping[str, RawTensor]:
        return self.tensors

    def fail(self, message: str) -> NoReturn:
        raise ModelFileError(f"{self.path}: {clipped(message, 1500)}")

    def release_pages(self) -> None:
        """Gives back the memory of what was read so far; what is needed again comes from the system's cache of files.

        For when the weights were packed: the file's bytes would stay in memory beside what was made of them.
        """
        for part in self.others:
            part.release_pages()
        mapped = self.content.obj
        if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)

    @property
    def container(self) -> Container:
        return "gguf"

    @property
    def architecture(self) -> str:
        value = self.metadata.get("general.architecture")
        if not isinstance(value, str):
            self.fail(f"metadata 'general.architecture' is {brief(value)}; expected a string")
        return value

    @property
    def name(self) -> str | None:
        return self._text("general.name")

    @property
    def licence(self) -> str | None:
        return self._text("general.license")

    @property
    def chat_template(self) -> str | None:
        return self._text("tokenizer.chat_template")

    def facts(self) -> Facts:
        return Facts(self, self.metadata, self.architecture)

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_gguf(self)

    def tokenizer_kind(self) -> str:
        return kind_of_vocabulary(self)

    def fingerprint(self) -> str:
        """SHA-256 of the size, the whole header and evenly spread samples of the weights, cut to 16 hex digits.

        It tells models and quantisations apart within milliseconds. It is no proof that a file is intact: a single
        flipped byte can lie between two samples.
        """
        digest = hashlib.sha256(f"{self.size} {self.data_start} ".encode())
        digest.update(self.content[: self.data_start])
        rest = max(0, self.size - self.data_start - SAMPLE_BYTES)
        for index in range(SAMPLES):
            start = self.data_start + rest * index // (SAMPLES - 1)
            digest.update(self.content[start : start + SAMPLE_BYTES])
        for part in self.others:
            digest.update(part.fingerprint().encode())
        return digest.hexdigest()[:16]

    def _text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        return value if isinstance(value, str) and value else None


def read_gguf(path: str | os.PathLike[str]) -> GgufFile:
    """Maps and parses a file and, where it is one part of a split model, the others beside it.

    Raises ModelNotFoundError where there is none, ModelFileError where it is no good.
    """
    file = _read_one(Path(path))
    return whole_model(file, _read_one) if "split.count" in file.metadata else file


def _read_one(path: Path) -> GgufFile:
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
    """Parses the bytes of one file; `path` is for messages. Raises ModelFileError."""
    cursor = Cursor(memoryview(content), Path(path))
    version, tensor_count, entry_count = read_preamble(cursor)
    metadata = read_metadata(cursor, entry_count)
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


_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def whole_model(part: GgufFile, read: Callable[[Path], GgufFile]) -> GgufFile:
    """The model that a part belongs to: NAME-00001-of-00003.gguf and so on, of which the first has the metadata."""
    count = part.metadata.get("split.count")
    if not isinstance(count, int) or count < 2:
        return part
    named = _PART.fullmatch(part.path.name)
    if named is None or int(named[3]) != count:
        part.fail(f"is one of {count} parts of a split model; expected a name like NAME-00001-of-{count:05d}.gguf")
    parts = []
    for number in range(count):
        path = part.path.with_name(f"{named[1]}-{number + 1:05d}-of-{count:05d}.gguf")
        try:
            found = read(path)
        except ModelNotFoundError:
            part.fail(f"part {number + 1} of {count} is missing; expected {path.name} beside it")
        if (found.metadata.get("split.no"), found.metadata.get("split.count")) != (number, count):
            at, of = found.metadata.get("split.no"), found.metadata.get("split.count")
            found.fail(f"says that it is part {brief(at)} (from 0) of {brief(of)}; its name says {number} of {count}")
        parts.append(found)
    return _joined(parts)


def _joined(parts: Sequence[GgufFile]) -> GgufFile:
    first = parts[0]
    tensors: dict[str, RawTensor] = {}
    for part in parts:
        for name in part.tensors.keys() & tensors.keys():
            part.fail(f"tensor {name!r} is also in another part of this model")
        tensors |= part.tensors
    wanted = first.metadata.get("split.tensors.count", len(tensors))
    if wanted != len(tensors):
        first.fail(f"the model has {brief(wanted)} tensors, its parts hold {len(tensors)}; one is of another model")
    return replace(
        first,
        size=sum(part.size for part in parts),
        tensors=MappingProxyType(tensors),
        others=tuple(parts[1:]),
    )
