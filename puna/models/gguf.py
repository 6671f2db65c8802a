"""Reads GGUF files: a memory-mapped header of metadata and tensor positions, then the tensors' bytes.

A file comes from a stranger. Every count, length and offset is checked against the bytes that are really there before
anything is allocated or followed, so what a file can cost is bounded by its own size. Versions 2 and 3, little-endian.
This module knows the container; it does not know what the metadata mean (`families/`), nor how to decode a weight.

    magic "GGUF" | version u32 | tensors u64 | entries u64 | entries ... | tensor infos ... | padding | tensor data
    string: length u64, UTF-8 bytes    entry: key string, type u32, value    array: type u32, count u64, values
    tensor info: name string, dimensions u32, extents u64 (innermost first), type u32, offset u64 (in the data)
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from puna.errors import ModelFileError, ModelNotFoundError
from puna.kernels.tensor import BLOCK_SIZES, RawTensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MAX_ARRAY_DEPTH = 4
MAX_NAME_BYTES = 65_535  # of a key or a tensor's name; the format's own limit for keys

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
SCALARS: dict[int, np.dtype[Any]] = {
    UINT8: np.dtype("<u1"),
    INT8: np.dtype("<i1"),
    UINT16: np.dtype("<u2"),
    INT16: np.dtype("<i2"),
    UINT32: np.dtype("<u4"),
    INT32: np.dtype("<i4"),
    FLOAT32: np.dtype("<f4"),
    BOOL: np.dtype("<u1"),
    UINT64: np.dtype("<u8"),
    INT64: np.dtype("<i8"),
    FLOAT64: np.dtype("<f8"),
}

TENSOR_TYPES: dict[int, str] = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 8: "Q8_0", 30: "BF16"}
# Types that other programs write and Puna cannot read, so that an error can call them by name.
FOREIGN_TYPES: dict[int, str] = {
    6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K",
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip

Value = Any  # int, float, bool, str, a one-dimensional NumPy array of numbers, or a list (of strings or of arrays)


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
        raise ModelFileError(f"{self.path}: {message}")

    def string(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            self.fail(f"metadata {key!r} is {_brief(value)}; expected a string")
        return value

    def integer(self, key: str, default: int | None = None, *, least: int = 0, most: int = 2**31 - 1) -> int:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.fail(f"metadata {key!r} is {_brief(value)}; expected a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: float | None = None, *, above: float = 0.0, most: float = 1e12) -> float:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= most:
            self.fail(f"metadata {key!r} is {_brief(value)}; expected a number above {above:g} and up to {most:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            self.fail(f"metadata {key!r} is {_brief(value)}; expected true or false")
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
    cursor = _Cursor(memoryview(content), Path(path))
    version, tensor_count, entry_count = _read_preamble(cursor)
    metadata = _read_metadata(cursor, entry_count)
    split_count = metadata.get("split.count", 0)
    if isinstance(split_count, int) and split_count > 1:
        cursor.fail(0, f"one of {split_count} parts of a split model", "a whole model in one file; merge the parts")
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        cursor.fail(0, f"general.alignment of {_brief(alignment)}", "a power of two")
    infos = _read_tensor_infos(cursor, tensor_count)
    data_start = -(-cursor.position // alignment) * alignment
    return GgufFile(
        path=Path(path),
        version=version,
        size=len(cursor.view),
        data_start=data_start,
        metadata=MappingProxyType(metadata),
        tensors=MappingProxyType(_place_tensors(cursor, infos, data_start, alignment)),
        content=cursor.view,
    )


@dataclass(frozen=True)
class _TensorInfo:
    name: str
    type: str
    shape: tuple[int, ...]
    size: int  # bytes
    offset: int  # from the start of the data
    position: int  # of this info in the file, for messages


class _Cursor:
    """A reading position that never leaves the file."""

    def __init__(self, view: memoryview, path: Path) -> None:
        self.view = view
        self.path = path
        self.position = 0

    def fail(self, offset: int, found: str, expected: str) -> NoReturn:
        raise ModelFileError(f"{self.path}: at byte {offset}: found {found}; expected {expected}")

    def require(self, count: int, what: str) -> None:
        left = len(self.view) - self.position
        if count > left:
            self.fail(self.position, f"the end of the file, {left} bytes on", f"{what}, {count} bytes")

    def take(self, layout: str, what: str) -> int:
        size = struct.calcsize(layout)
        self.require(size, what)
        value: int = struct.unpack_from(layout, self.view, self.position)[0]
        self.position += size
        return value

    def u32(self, what: str) -> int:
        return self.take("<I", what)

    def u64(self, what: str) -> int:
        return self.take("<Q", what)

    def name(self, what: str) -> str:
        start = self.position
        length = self.u64(f"the length of {what}")
        if length > MAX_NAME_BYTES:
            self.fail(start, f"{what} of {length} bytes", f"at most {MAX_NAME_BYTES}")
        return self.text(length, what)

    def text(self, length: int, what: str) -> str:
        self.require(length, what)
        start = self.position
        self.position += length
        try:
            return str(self.view[start : self.position], "utf-8")
        except UnicodeDecodeError as error:
            self.fail(start + error.start, f"bytes that are not UTF-8 in {what}", "UTF-8 text")


def _read_preamble(cursor: _Cursor) -> tuple[int, int, int]:
    found = bytes(cursor.view[:4])
    if found != MAGIC:
        cursor.fail(0, repr(found), f"{MAGIC!r}, with which every GGUF file begins")
    cursor.position = 4
    version = cursor.u32("the version")
    if version and version & 0xFFFF == 0:
        cursor.fail(4, "a big-endian file", "a little-endian one; convert it or get the usual variant")
    if version not in VERSIONS:
        cursor.fail(4, f"GGUF version {version}", f"version {' or '.join(map(str, VERSIONS))}")
    tensor_count = cursor.u64("the tensor count")
    entry_count = cursor.u64("the metadata count")
    left = len(cursor.view) - cursor.position
    # The smallest entry takes 8 + 4 + 1 bytes, the smallest tensor info 8 + 4 + 8 + 4 + 8.
    if entry_count * 13 > left:
        cursor.fail(16, f"a count of {entry_count} metadata entries", f"no more than fit into {left} bytes")
    if tensor_count * 32 > left:
        cursor.fail(8, f"a count of {tensor_count} tensors", f"no more than fit into {left} bytes")
    return version, tensor_count, entry_count


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for index in range(count):
        start = cursor.position
        key = cursor.name(f"the key of metadata entry {index}")
        if key in metadata:
            cursor.fail(start, f"a second metadata entry {key!r}", "each key once")
        kind = cursor.u32(f"the type of metadata {key!r}")
        metadata[key] = _read_value(cursor, kind, key, 0)
    return metadata


def _read_value(cursor: _Cursor, kind: int, key: str, depth: int) -> Value:
    start = cursor.position
    if kind == STRING:
        return cursor.text(cursor.u64(f"the length of metadata {key!r}"), f"metadata {key!r}")
    if kind == ARRAY:
        return _read_array(cursor, key, depth)
    if kind not in SCALARS:
        cursor.fail(start - 4, f"value type {kind} for metadata {key!r}", f"a type from 0 to {FLOAT64}")
    return _read_numbers(cursor, kind, 1, key)[0].item()


def _read_array(cursor: _Cursor, key: str, depth: int) -> Value:
    start = cursor.position
    if depth == MAX_ARRAY_DEPTH:
        cursor.fail(start, f"arrays nested deeper than {depth} in metadata {key!r}", f"at most {depth} levels")
    kind = cursor.u32(f"the element type of metadata {key!r}")
    count = cursor.u64(f"the length of metadata {key!r}")
    if kind in SCALARS:
        return _read_numbers(cursor, kind, count, key)
    smallest = {STRING: 8, ARRAY: 12}.get(kind)
    if smallest is None:
        cursor.fail(start, f"element type {kind} in metadata {key!r}", f"a type from 0 to {FLOAT64}")
    cursor.require(count * smallest, f"the {count} elements of metadata {key!r}")
    if kind == STRING:
        return _read_strings(cursor, count, key)
    return [_read_array(cursor, key, depth + 1) for _ in range(count)]


def _read_numbers(cursor: _Cursor, kind: int, count: int, key: str) -> npt.NDArray[Any]:
    dtype = SCALARS[kind]
    start = cursor.position
    cursor.require(count * dtype.itemsize, f"the value of metadata {key!r}")
    cursor.position += count * dtype.itemsize
    values = np.frombuffer(cursor.view[start : cursor.position], dtype)
    if kind == BOOL:
        if count and values.max() > 1:
            cursor.fail(start, f"a truth value other than 0 and 1 in metadata {key!r}", "0 or 1")
        return values.astype(np.bool_)
    return values


def _read_strings(cursor: _Cursor, count: int, key: str) -> list[str]:
    """The vocabulary lies here: a quarter of a million short strings, so the loop is kept bare."""
    view, position, size = cursor.view, cursor.position, len(cursor.view)
    length_at = struct.Struct("<Q").unpack_from
    strings: list[str] = []
    append = strings.append
    try:
        for _ in range(count):
            start = position + 8
            position = start + length_at(view, position)[0]
            if position > size:
                raise IndexError
            append(str(view[start:position], "utf-8"))
    except (struct.error, IndexError):
        cursor.fail(start - 8, "the end of the file", f"string {len(strings)} of {count} in metadata {key!r}")
    except UnicodeDecodeError:
        cursor.fail(start, f"bytes that are not UTF-8 in string {len(strings)} of metadata {key!r}", "UTF-8 text")
    cursor.position = position
    return strings


def _read_tensor_infos(cursor: _Cursor, count: int) -> list[_TensorInfo]:
    infos: dict[str, _TensorInfo] = {}
    for index in range(count):
        info = _read_tensor_info(cursor, index)
        if info.name in infos:
            cursor.fail(info.position, f"a second tensor {info.name!r}", "each tensor once")
        infos[info.name] = info
    return list(infos.values())


def _read_tensor_info(cursor: _Cursor, index: int) -> _TensorInfo:
    start = cursor.position
    name = cursor.name(f"the name of tensor {index}")
    dimensions = cursor.u32(f"the dimensions of tensor {name!r}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        cursor.fail(cursor.position - 4, f"{dimensions} dimensions in tensor {name!r}", f"1 to {MAX_DIMENSIONS}")
    extents = tuple(cursor.u64(f"the extents of tensor {name!r}") for _ in range(dimensions))
    type_at = cursor.position
    number = cursor.u32(f"the type of tensor {name!r}")
    if number not in TENSOR_TYPES:
        known = f" ({FOREIGN_TYPES[number]})" if number in FOREIGN_TYPES else ""
        supported = ", ".join(f"{kind} ({code})" for code, kind in TENSOR_TYPES.items())
        cursor.fail(type_at, f"type {number}{known} of tensor {name!r}", f"a type that Puna reads: {supported}")
    kind = TENSOR_TYPES[number]
    elements, block_bytes = BLOCK_SIZES[kind]
    if extents[0] % elements:
        cursor.fail(start, f"rows of {extents[0]} values in tensor {name!r}", f"a multiple of {elements} for {kind}")
    size = extents[0] // elements * block_bytes
    for extent in extents[1:]:
        size *= extent
    if size == 0 or size > len(cursor.view):
        found = f"extents {extents} ({size} bytes as {kind}) of tensor {name!r}"
        cursor.fail(start, found, f"1 to {len(cursor.view)} bytes, the size of the file")
    offset = cursor.u64(f"the offset of tensor {name!r}")
    return _TensorInfo(name, kind, extents[::-1], size, offset, start)


def _place_tensors(cursor: _Cursor, infos: list[_TensorInfo], data_start: int, alignment: int) -> dict[str, RawTensor]:
    content = np.frombuffer(cursor.view, np.uint8)
    size = len(content)
    previous_end, previous_name = 0, ""
    for info in sorted(infos, key=lambda info: info.offset):
        if info.offset % alignment:
            found = f"tensor {info.name!r} at offset {info.offset} of the data"
            cursor.fail(info.position, found, f"a multiple of the alignment, {alignment}")
        if data_start + info.offset + info.size > size:
            found = f"tensor {info.name!r} reaching to byte {data_start + info.offset + info.size}"
            cursor.fail(info.position, found, f"an end within the file's {size} bytes; is the file complete?")
        if info.offset < previous_end:
            found = f"tensor {info.name!r} overlapping tensor {previous_name!r}"
            cursor.fail(info.position, found, "bytes of its own for each tensor")
        previous_end, previous_name = info.offset + info.size, info.name
    tensors = {}
    for info in infos:
        start = data_start + info.offset
        tensors[info.name] = RawTensor(info.name, info.type, info.shape, content[start : start + info.size])
    return tensors


def _open_without_waiting(path: str, flags: int) -> int:
    """A named pipe must not block the open; for a regular file the flag means nothing."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _brief(value: Value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
