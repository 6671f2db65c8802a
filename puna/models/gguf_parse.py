"""Walks through the bytes of a GGUF header and never leaves them.

Each reader checks that what it is about to take is there, before it takes it; what is not becomes a ModelFileError with
the byte's place. It knows the format, not what the metadata mean.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from puna.errors import ModelFileError
from puna.kernels.tensor import BLOCK_SIZES, RawTensor
from puna.models.gguf_format import (
    ARRAY,
    BOOL,
    FLOAT64,
    FOREIGN_TYPES,
    MAGIC,
    MAX_ARRAY_DEPTH,
    MAX_DIMENSIONS,
    MAX_NAME_BYTES,
    SCALARS,
    STRING,
    TENSOR_TYPES,
    VERSIONS,
)

Value = Any  # int, float, bool, str, a one-dimensional NumPy array of numbers, or a list (of strings or of arrays)


def brief(value: Value) -> str:
    """A value as it may stand in a message."""
    try:
        text = repr(value)
    except RecursionError:
        text = "nested very deeply"
    return text if len(text) <= 60 else text[:57] + "..."


def clipped(text: str, limit: int = 400) -> str:
    """Part of a message, which may quote a name as long as the file allows."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


@dataclass(frozen=True)
class TensorInfo:
    name: str
    type: str
    shape: tuple[int, ...]
    size: int  # bytes
    offset: int  # from the start of the data
    position: int  # of this info in the file, for messages


class Cursor:
    """A reading position that never leaves the file."""

    def __init__(self, view: memoryview, path: Path) -> None:
        self.view = view
        self.path = path
        self.position = 0

    def fail(self, offset: int, found: str, expected: str) -> NoReturn:
        raise ModelFileError(f"{self.path}: at byte {offset}: found {clipped(found)}; expected {clipped(expected)}")

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


def read_preamble(cursor: Cursor) -> tuple[int, int, int]:
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


def read_metadata(cursor: Cursor, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for index in range(count):
        start = cursor.position
        key = cursor.name(f"the key of metadata entry {index}")
        if key in metadata:
            cursor.fail(start, f"a second metadata entry {key!r}", "each key once")
        kind = cursor.u32(f"the type of metadata {key!r}")
        metadata[key] = _read_value(cursor, kind, key, 0)
    return metadata


def _read_value(cursor: Cursor, kind: int, key: str, depth: int) -> Value:
    start = cursor.position
    if kind == STRING:
        return cursor.text(cursor.u64(f"the length of metadata {key!r}"), f"metadata {key!r}")
    if kind == ARRAY:
        return _read_array(cursor, key, depth)
    if kind not in SCALARS:
        cursor.fail(start - 4, f"value type {kind} for metadata {key!r}", f"a type from 0 to {FLOAT64}")
    return _read_numbers(cursor, kind, 1, key)[0].item()


def _read_array(cursor: Cursor, key: str, depth: int) -> Value:
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


def _read_numbers(cursor: Cursor, kind: int, count: int, key: str) -> npt.NDArray[Any]:
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


def _read_strings(cursor: Cursor, count: int, key: str) -> list[str]:
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


def read_tensor_infos(cursor: Cursor, count: int) -> list[TensorInfo]:
    infos: dict[str, TensorInfo] = {}
    for index in range(count):
        info = _read_tensor_info(cursor, index)
        if info.name in infos:
            cursor.fail(info.position, f"a second tensor {info.name!r}", "each tensor once")
        infos[info.name] = info
    return list(infos.values())


def _read_tensor_info(cursor: Cursor, index: int) -> TensorInfo:
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
    return TensorInfo(name, kind, extents[::-1], size, offset, start)


def place_tensors(cursor: Cursor, infos: list[TensorInfo], data_start: int, alignment: int) -> dict[str, RawTensor]:
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
