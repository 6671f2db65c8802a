"""Writes small GGUF files: metadata, tensors, and the encoders that turn float32 matrices into block formats.

Meant for tests and for conversion, not for speed. It writes version 3, little-endian, whole tensors from memory. It
knows nothing of models.
"""

from __future__ import annotations

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

F32Array = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

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
    blocks = np.ascontiguousarray(values, np.float32).reshape(-1, block)
    return TensorToWrite(name, type, tuple(values.shape), _ENCODERS[type](blocks).tobytes())


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Sequence[TensorToWrite],
    *,
    alignment: int = gguf.DEFAULT_ALIGNMENT,
) -> None:
    """Writes a file. int becomes u32 (i32, u64 or i64 where it does not fit), float f32; arrays keep their dtype."""
    Path(path).write_bytes(gguf_bytes(metadata, tensors, alignment=alignment))


def gguf_bytes(
    metadata: Mapping[str, Any], tensors: Sequence[TensorToWrite], *, alignment: int = gguf.DEFAULT_ALIGNMENT
) -> bytes:
    if alignment != gguf.DEFAULT_ALIGNMENT:
        metadata = {**metadata, "general.alignment": alignment}
    header = bytearray(gguf.MAGIC + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        kind, payload = _value_bytes(value)
        header += _string_bytes(key) + struct.pack("<I", kind) + payload
    offset = 0
    for tensor in tensors:
        header += _string_bytes(tensor.name)
        header += struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape[::-1])
        header += struct.pack("<IQ", _TYPE_NUMBERS[tensor.type], offset)
        offset += _padded(len(tensor.data), alignment)
    parts = [bytes(header).ljust(_padded(len(header), alignment), b"\0")]
    parts += [tensor.data.ljust(_padded(len(tensor.data), alignment), b"\0") for tensor in tensors]
    return b"".join(parts)


def _padded(size: int, alignment: int) -> int:
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


def _encode_f32(blocks: F32Array) -> Bytes:
    return blocks.astype("<f4").view(np.uint8)


def _encode_f16(blocks: F32Array) -> Bytes:
    return blocks.astype("<f2").view(np.uint8)


def _encode_bf16(blocks: F32Array) -> Bytes:
    """The upper half of a float32, rounded to nearest, ties to even; a NaN stays a NaN."""
    bits = blocks.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    rounded = np.where(np.isnan(blocks), (bits >> 16) | 0x40, rounded)
    return rounded.astype("<u2").view(np.uint8)


def _encode_q8_0(blocks: F32Array) -> Bytes:
    """scale f16 | 32 x i8: value = scale * i."""
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    steps = np.rint(_divided(blocks, scale)).clip(-127, 127).astype(np.int8)
    return np.concatenate([_f16_bytes(scale), steps.view(np.uint8)], axis=1)


def _encode_q4_0(blocks: F32Array) -> Bytes:
    """scale f16 | 16 bytes: value = scale * (nibble - 8); the value of largest magnitude gets nibble 0."""
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    scale = extreme / np.float32(-8)
    steps = (np.rint(_divided(blocks, scale)) + 8).clip(0, 15).astype(np.uint8)
    return np.concatenate([_f16_bytes(scale), _nibbles(steps)], axis=1)


def _encode_q4_1(blocks: F32Array) -> Bytes:
    """scale f16 | minimum f16 | 16 bytes: value = scale * nibble + minimum."""
    low = blocks.min(axis=1, keepdims=True)
    scale = (blocks.max(axis=1, keepdims=True) - low) / np.float32(15)
    steps = np.rint(_divided(blocks - low, scale)).clip(0, 15).astype(np.uint8)
    return np.concatenate([_f16_bytes(scale), _f16_bytes(low), _nibbles(steps)], axis=1)


def _divided(values: F32Array, scale: F32Array) -> F32Array:
    return np.divide(values, scale, out=np.zeros_like(values), where=scale != 0)


def _f16_bytes(column: F32Array) -> Bytes:
    return column.astype("<f2").view(np.uint8)


def _nibbles(steps: Bytes) -> Bytes:
    """Byte j holds value j in its low half and value j + 16 in its high half."""
    return steps[:, :16] | (steps[:, 16:] * np.uint8(16))


_ENCODERS = {
    "F32": _encode_f32,
    "F16": _encode_f16,
    "BF16": _encode_bf16,
    "Q8_0": _encode_q8_0,
    "Q4_0": _encode_q4_0,
    "Q4_1": _encode_q4_1,
}
