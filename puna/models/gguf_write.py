"""Writes GGUF, version 3, little-endian: the bytes of a header, and whole small files from memory.

It knows the container and nothing of models; what conversion writes tensor by tensor begins with `header_bytes`.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from puna.kernels.tensor import BLOCK_SIZES
from puna.models import gguf_format as gguf
from puna.models.quantize import quantize

LARGEST_F32 = float(np.finfo(np.float32).max)
_TYPE_NUMBERS = {name: number for number, name in gguf.TENSOR_TYPES.items()}
_DTYPE_KINDS = {dtype: kind for kind, dtype in gguf.SCALARS.items() if kind != gguf.BOOL}


@dataclass(frozen=True)
class Typed:
    """A metadata value with its GGUF type spelled out, where the Python type alone would pick another."""

    kind: int
    value: Any


@dataclass(frozen=True)
class TensorToWrite:
    """`shape` is row-major; `data` the encoded bytes."""

    name: str
    type: str
    shape: tuple[int, ...]
    data: bytes


def encode(name: str, values: npt.NDArray[Any], type: str) -> TensorToWrite:
    """Encodes a float array as `type`; its last axis has to be a multiple of the type's block."""
    block = BLOCK_SIZES[type][0]
    if values.shape[-1] % block:
        raise ValueError(f"{name}: rows of {values.shape[-1]} values do not divide into {type} blocks of {block}")
    return TensorToWrite(name, type, tuple(values.shape), quantize(values, type).tobytes())


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Sequence[TensorToWrite],
    *,
    alignment: int = gguf.DEFAULT_ALIGNMENT,
) -> None:
    """Writes a file. int becomes u32 (i32, u64 or i64 where it does not fit), float f32 (f64 where it does
    not fit); arrays keep their dtype."""
    Path(path).write_bytes(gguf_bytes(metadata, tensors, alignment=alignment))


def gguf_bytes(
    metadata: Mapping[str, Any], tensors: Sequence[TensorToWrite], *, alignment: int = gguf.DEFAULT_ALIGNMENT
) -> bytes:
    if alignment != gguf.DEFAULT_ALIGNMENT:
        metadata = {**metadata, "general.alignment": alignment}
    infos = [(tensor.name, tensor.type, tensor.shape, len(tensor.data)) for tensor in tensors]
    parts = [header_bytes(metadata, infos, alignment)]
    parts += [tensor.data.ljust(padded(len(tensor.data), alignment), b"\0") for tensor in tensors]
    return b"".join(parts)


def header_bytes(
    metadata: Mapping[str, Any],
    tensors: Sequence[tuple[str, str, tuple[int, ...], int]],
    alignment: int = gguf.DEFAULT_ALIGNMENT,
) -> bytes:
    """All that stands before the weights. `tensors`: name, type, row-major shape and bytes of each, in the order in
    which they follow, each padded to `alignment`."""
    header = bytearray(gguf.MAGIC + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        kind, payload = _value_bytes(value)
        header += _string_bytes(key) + struct.pack("<I", kind) + payload
    offset = 0
    for name, type, shape, size in tensors:
        header += _string_bytes(name)
        header += struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        header += struct.pack("<IQ", _TYPE_NUMBERS[type], offset)
        offset += padded(size, alignment)
    return bytes(header).ljust(padded(len(header), alignment), b"\0")


def padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _string_bytes(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value_bytes(value: Any) -> tuple[int, bytes]:
    if isinstance(value, Typed):
        dtype = gguf.SCALARS[value.kind]
        return value.kind, np.asarray(value.value).astype(dtype).tobytes()
    if isinstance(value, bool):
        return gguf.BOOL, struct.pack("<?", value)
    if isinstance(value, int):
        return _integer_bytes(value)
    if isinstance(value, float):
        if abs(value) > LARGEST_F32 and math.isfinite(value):
            return gguf.FLOAT64, struct.pack("<d", value)
        return gguf.FLOAT32, struct.pack("<f", value)
    if isinstance(value, str):
        return gguf.STRING, _string_bytes(value)
    if isinstance(value, np.ndarray):
        kind = gguf.BOOL if value.dtype == np.bool_ else _DTYPE_KINDS[value.dtype.newbyteorder("<")]
        return gguf.ARRAY, struct.pack("<IQ", kind, len(value)) + value.tobytes()
    if isinstance(value, list):
        return gguf.ARRAY, _list_bytes(value)
    raise TypeError(f"no GGUF type for a metadata value of {type(value).__name__}")


def _integer_bytes(value: int) -> tuple[int, bytes]:
    for kind in (gguf.UINT32, gguf.INT32, gguf.UINT64, gguf.INT64):
        limits = np.iinfo(gguf.SCALARS[kind])
        if limits.min <= value <= limits.max:
            return kind, np.array(value, gguf.SCALARS[kind]).tobytes()
    raise ValueError(f"{value} does not fit into 64 bits")


def _list_bytes(values: list[Any]) -> bytes:
    """All elements have to be of one type, that of the first; an empty list is one of strings."""
    kinds_and_payloads = [_value_bytes(value) for value in values]
    kind = kinds_and_payloads[0][0] if values else gguf.STRING
    if any(other != kind for other, _ in kinds_and_payloads):
        raise TypeError("a metadata list holds values of several types")
    return struct.pack("<IQ", kind, len(values)) + b"".join(payload for _, payload in kinds_and_payloads)
