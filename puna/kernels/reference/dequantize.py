"""Decodes a weight to float32, exactly.

One function a type, each with its block drawn. A block's values lie in order along the last axis of the tensor. This
is what every packed layout of every backend is compared with. Types that are rare, most of them codebooks, are decoded
by the `gguf` package.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from puna.errors import ModelFileError
from puna.kernels.reference import dequantize_k as k
from puna.kernels.tensor import BLOCK_SIZES, RawTensor

F32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


def dequantize(tensor: RawTensor) -> F32:
    """float32 array of `tensor.shape`. Raises ModelFileError for a type that has no decoder, and where the bytes
    are not those of the shape."""
    values, block_bytes = BLOCK_SIZES.get(tensor.type, (0, 0))
    if values and tensor.data.size * values != math.prod(tensor.shape) * block_bytes:
        raise ModelFileError(
            f"tensor {tensor.name!r} of type {tensor.type}: its {tensor.data.size} bytes do not match its shape "
            f"{list(tensor.shape)}"
        )
    decode = _DECODERS.get(tensor.type)
    if decode is None:
        return _by_package(tensor)
    return decode(tensor.data.reshape(-1, block_bytes)).reshape(tensor.shape)


def _by_package(tensor: RawTensor) -> F32:
    from gguf import GGMLQuantizationType, quants

    try:
        kind = GGMLQuantizationType[tensor.type]
        _, block_bytes = BLOCK_SIZES[tensor.type]
        values = quants.dequantize(tensor.data.reshape(-1, block_bytes), kind)
    except (KeyError, NotImplementedError):
        known = ", ".join(sorted(_DECODERS))
        raise ModelFileError(
            f"tensor {tensor.name!r} has element type {tensor.type}; Puna decodes {known} and the gguf package's"
        ) from None
    return np.ascontiguousarray(values, np.float32).reshape(tensor.shape)


def _f32(blocks: Bytes) -> F32:
    return np.ascontiguousarray(blocks).view(np.float32)


def _f16(blocks: Bytes) -> F32:
    return np.ascontiguousarray(blocks).view(np.float16).astype(np.float32)


def _bf16(blocks: Bytes) -> F32:
    return (np.ascontiguousarray(blocks).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _half(blocks: Bytes, at: int) -> F32:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes) -> F32:
    """[blocks, 16] bytes -> [blocks, 32]: the low halves are values 0 to 15, the high halves 16 to 31."""
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


def _q8_0(blocks: Bytes) -> F32:
    """| scale f16 | 32 x int8 |  value = scale * q"""
    return _half(blocks, 0) * np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32)


def _q4_0(blocks: Bytes) -> F32:
    """| scale f16 | 16 bytes of nibbles |  value = scale * (q - 8)"""
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]) - np.float32(8))


def _q4_1(blocks: Bytes) -> F32:
    """| scale f16 | minimum f16 | 16 bytes of nibbles |  value = scale * q + minimum"""
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)


def _q4_z(blocks: Bytes) -> F32:
    """| scale f16 | zero f16, a whole number | 16 bytes of nibbles |  value = scale * (q - zero)"""
    return _half(blocks, 0) * (_nibbles(blocks[:, 4:]) - _half(blocks, 2))


_DECODERS: dict[str, Callable[[Bytes], F32]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q4_Z": _q4_z,
    "Q5_0": k.q5_0,
    "Q5_1": k.q5_1,
    "Q2_K": k.q2_k,
    "Q3_K": k.q3_k,
    "Q4_K": k.q4_k,
    "Q5_K": k.q5_k,
    "Q6_K": k.q6_k,
    "IQ4_NL": k.iq4_nl,
    "IQ4_XS": k.iq4_xs,
}
