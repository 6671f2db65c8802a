"""Encodes superblocks of 256 values: Q4_K, Q5_K and Q6_K.

A run's scale (and minimum) is searched first, then rounded to whole numbers of one f16 of the superblock, and the
values are rounded for what is left of it. kernels/reference/dequantize_k.py draws the blocks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from puna.models.scale_search import offset_scales, signed_scales

F32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


def encode_q4_k(blocks: F32) -> Bytes:
    q, header = _of_eight_runs(blocks, 15)
    return np.concatenate([header, _run_nibbles(q)], axis=1)


def encode_q5_k(blocks: F32) -> Bytes:
    q, header = _of_eight_runs(blocks, 31)
    high = np.packbits((q >> 4 & 1).transpose(0, 2, 1), axis=2, bitorder="little")[..., 0]
    return np.concatenate([header, high, _run_nibbles(q & np.uint8(15))], axis=1)


def encode_q6_k(blocks: F32) -> Bytes:
    runs = blocks.reshape(-1, 16)
    scales = signed_scales(runs, 32).reshape(-1, 16)
    extreme = np.take_along_axis(scales, np.abs(scales).argmax(axis=1)[:, None], axis=1)
    unit = as_f16(extreme / np.float32(-128))
    codes = np.rint(divided(scales, unit)).clip(-128, 127)
    whole = np.rint(divided(blocks.reshape(-1, 16, 16), (unit * codes)[..., None])) + np.float32(32)
    q: Bytes = whole.clip(0, 63).astype(np.uint8).reshape(-1, 2, 128)
    low = (q[..., :64] & 15 | q[..., 64:] << 4).reshape(-1, 128)
    pairs = (q >> 4).reshape(-1, 2, 4, 32)
    high = (pairs[:, :, 0] | pairs[:, :, 1] << 2 | pairs[:, :, 2] << 4 | pairs[:, :, 3] << 6).reshape(-1, 64)
    return np.concatenate([low, high, codes.astype(np.int8).view(np.uint8), f16_bytes(unit)], axis=1)


def _of_eight_runs(blocks: F32, most: int) -> tuple[Bytes, Bytes]:
    """Whole numbers [blocks, 8, 32], and the sixteen bytes | scale f16 | minimum f16 | scales and minima, 6 bits |"""
    scales, minima = (part.reshape(-1, 8) for part in offset_scales(blocks.reshape(-1, 32), most))
    unit, least = (as_f16(part.max(axis=1, keepdims=True) / np.float32(63)) for part in (scales, minima))
    scale_codes = np.rint(divided(scales, unit)).clip(0, 63)
    minimum_codes = np.rint(divided(minima, least)).clip(0, 63)
    shifted = blocks.reshape(-1, 8, 32) + (least * minimum_codes)[..., None]
    q = np.rint(divided(shifted, (unit * scale_codes)[..., None])).clip(0, most).astype(np.uint8)
    codes = _packed_codes(scale_codes.astype(np.uint8), minimum_codes.astype(np.uint8))
    return q, np.concatenate([f16_bytes(unit), f16_bytes(least), codes], axis=1)


def _packed_codes(scales: Bytes, minima: Bytes) -> Bytes:
    """Twelve bytes, as `scales_and_minima` of dequantize_k.py takes them apart."""
    first = scales[:, :4] | scales[:, 4:] >> 4 << 6
    second = minima[:, :4] | minima[:, 4:] >> 4 << 6
    return np.concatenate([first, second, scales[:, 4:] & 15 | minima[:, 4:] << 4], axis=1)


def _run_nibbles(q: Bytes) -> Bytes:
    """[blocks, 8, 32] -> [blocks, 128]: of each two runs the first in the low halves, the second in the high ones."""
    packed: Bytes = q[:, 0::2] | q[:, 1::2] << np.uint8(4)
    return packed.reshape(len(q), 128)


def as_f16(values: F32) -> F32:
    return values.astype(np.float16).astype(np.float32)


def divided(values: F32, scale: F32) -> F32:
    scale = np.broadcast_to(scale, values.shape)
    return np.divide(values, scale, out=np.zeros_like(values), where=scale != 0)


def f16_bytes(column: F32) -> Bytes:
    return column.astype("<f2").view(np.uint8)
