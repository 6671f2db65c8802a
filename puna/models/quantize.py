"""Encodes float32 values as a type of GGUF: the plain ones here and those in blocks of 32, K-quants in quantize_k.py.

Each function is the inverse, as far as there is one, of its namesake in kernels/reference/dequantize.py, which draws
the block. Knows values and bytes, no files.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from puna.errors import ModelFileError
from puna.kernels.tensor import BLOCK_SIZES
from puna.models import quantize_k as k
from puna.models.quantize_k import as_f16, divided, f16_bytes
from puna.models.scale_search import offset_scales, signed_scales

F32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

LARGEST_F16 = np.float32(65504)


def quantize(values: F32, type: str) -> Bytes:
    """Bytes of `values` as `type`: uint8 [rows, bytes a row]. The last axis has to be a multiple of the type's block.

    Raises ModelFileError where a value is not finite, or too large for the type.
    """
    block, size = BLOCK_SIZES[type]
    row = values.shape[-1]
    blocks = np.ascontiguousarray(values, np.float32).reshape(-1, block)
    if type not in ("F32", "BF16"):
        largest = np.abs(blocks).max(initial=0)
        if not largest <= LARGEST_F16:
            raise ModelFileError(f"a weight of {largest:g} does not fit into {type}; expected at most {LARGEST_F16:g}")
    encoded: Bytes = ENCODERS[type](blocks)
    return encoded.reshape(-1, row // block * size)


def _encode_f32(blocks: F32) -> Bytes:
    return blocks.astype("<f4").view(np.uint8)


def _encode_f16(blocks: F32) -> Bytes:
    return blocks.astype("<f2").view(np.uint8)


def _encode_bf16(blocks: F32) -> Bytes:
    """The upper half of a float32, rounded to nearest, ties to even; a NaN stays a NaN."""
    bits = blocks.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & np.uint32(1))) >> 16
    rounded = np.where(np.isnan(blocks), bits >> 16 | np.uint32(0x40), rounded)
    return rounded.astype("<u2").view(np.uint8)


def _encode_q8_0(blocks: F32) -> Bytes:
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    steps = np.rint(divided(blocks, scale)).clip(-127, 127).astype(np.int8)
    return np.concatenate([f16_bytes(scale), steps.view(np.uint8)], axis=1)


def _encode_q4_0(blocks: F32) -> Bytes:
    steps, scale = _signed(blocks, 8)
    return np.concatenate([scale, _nibbles(steps)], axis=1)


def _encode_q5_0(blocks: F32) -> Bytes:
    steps, scale = _signed(blocks, 16)
    return np.concatenate([scale, _fifth_bits(steps), _nibbles(steps & np.uint8(15))], axis=1)


def _encode_q4_1(blocks: F32) -> Bytes:
    """The least value is the minimum; the search of other offsets gains nothing where it may have any sign."""
    low = blocks.min(axis=1, keepdims=True)
    scale = (blocks.max(axis=1, keepdims=True) - low) / np.float32(15)
    steps = np.rint(divided(blocks - low, scale)).clip(0, 15).astype(np.uint8)
    return np.concatenate([f16_bytes(scale), f16_bytes(low), _nibbles(steps)], axis=1)


def _encode_q5_1(blocks: F32) -> Bytes:
    scale, minimum = offset_scales(blocks, 31)
    scale, minimum = as_f16(scale), as_f16(minimum)
    steps = np.rint(divided(blocks + minimum, scale)).clip(0, 31).astype(np.uint8)
    return np.concatenate(
        [f16_bytes(scale), f16_bytes(-minimum), _fifth_bits(steps), _nibbles(steps & np.uint8(15))], axis=1
    )


def _signed(blocks: F32, most: int) -> tuple[Bytes, Bytes]:
    """Whole numbers from 0 to 2 most - 1 around `most`, and the scale's bytes."""
    scale = as_f16(signed_scales(blocks, most))
    steps = np.rint(divided(blocks, scale)) + np.float32(most)
    return steps.clip(0, 2 * most - 1).astype(np.uint8), f16_bytes(scale)


def _nibbles(steps: Bytes) -> Bytes:
    """Byte j holds value j in its low half and value j + 16 in its high half."""
    return steps[:, :16] | (steps[:, 16:] * np.uint8(16))


def _fifth_bits(steps: Bytes) -> Bytes:
    return np.packbits(steps >> 4 & 1, axis=1, bitorder="little")


ENCODERS: dict[str, Callable[[F32], Bytes]] = {
    "F32": _encode_f32,
    "F16": _encode_f16,
    "BF16": _encode_bf16,
    "Q8_0": _encode_q8_0,
    "Q4_0": _encode_q4_0,
    "Q4_1": _encode_q4_1,
    "Q5_0": _encode_q5_0,
    "Q5_1": _encode_q5_1,
    "Q4_K": k.encode_q4_k,
    "Q5_K": k.encode_q5_k,
    "Q6_K": k.encode_q6_k,
}
