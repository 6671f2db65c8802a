"""Decodes the block formats of five and more bits and the K-quants, exactly: to the bit what ggml makes of them.

A superblock holds 256 values in runs of 16 or 32 with scales of their own, which are whole numbers of a few bits times
one or two float16 of the block. Every function takes [blocks, bytes] and gives [blocks, values].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

# Values that the codes of IQ4_NL and IQ4_XS stand for: denser around zero, as weights are.
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def _half(blocks: Bytes, at: int) -> F32:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes, run: int = 16) -> Bytes:
    """Runs of `run` bytes: their low halves, then their high halves, run after run."""
    runs = packed.reshape(len(packed), -1, 1, run)
    halves: Bytes = runs >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1) & np.uint8(15)
    return halves.reshape(len(packed), -1)


def _bits(packed: Bytes) -> Bytes:
    """[blocks, n] bytes -> [blocks, 8 n] bits, the lowest of each byte first."""
    return np.unpackbits(packed, axis=1, bitorder="little")


def q5_0(blocks: Bytes) -> F32:
    """| scale f16 | 32 high bits | 16 bytes of nibbles |  value = scale * (q - 16)"""
    q = _nibbles(blocks[:, 6:]) | _bits(blocks[:, 2:6]) << 4
    return _half(blocks, 0) * (q.astype(np.float32) - np.float32(16))


def q5_1(blocks: Bytes) -> F32:
    """| scale f16 | minimum f16 | 32 high bits | 16 bytes of nibbles |  value = scale * q + minimum"""
    q = _nibbles(blocks[:, 8:]) | _bits(blocks[:, 4:8]) << 4
    return _half(blocks, 0) * q.astype(np.float32) + _half(blocks, 2)


def q2_k(blocks: Bytes) -> F32:
    """| 16 bytes: a run's scale and minimum in four bits each | 64 bytes of pairs of bits | scale f16 | minimum f16 |

    Of each half of 128 values, byte i holds values i, 32 + i, 64 + i and 96 + i, the first in its lowest bits.
    """
    codes = blocks[:, :16]
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    q = (blocks[:, 16:80].reshape(-1, 2, 1, 32) >> shifts & 3).reshape(-1, 16, 16).astype(np.float32)
    scale = _half(blocks, 80) * (codes & 15).astype(np.float32)
    minimum = _half(blocks, 82) * (codes >> 4).astype(np.float32)
    values: F32 = scale[..., None] * q - minimum[..., None]
    return values.reshape(-1, 256)


def q3_k(blocks: Bytes) -> F32:
    """| 32 bytes of high bits | 64 bytes of pairs of bits, as in Q2_K | 12 bytes of scales | scale f16 |

    Bit j of byte i of the high bits belongs to value 32 j + i: where it is not set, 4 is taken off. A run of 16 has a
    scale of six bits less 32: four of them in the first eight bytes (low halves first), two in the last four.
    """
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    low = (blocks[:, 32:96].reshape(-1, 2, 1, 32) >> shifts & 3).reshape(-1, 256).astype(np.int8)
    high = (blocks[:, None, :32] >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1) & 1).reshape(-1, 256).astype(np.int8)
    fours = np.concatenate([blocks[:, 96:104] & 15, blocks[:, 96:104] >> 4], axis=1)
    twos = (blocks[:, None, 104:108] >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 4, 1) & 3).reshape(-1, 16)
    scale = _half(blocks, 108) * ((fours | twos << 4).astype(np.float32) - np.float32(32))
    q = (low - (np.int8(1) - high) * np.int8(4)).reshape(-1, 16, 16).astype(np.float32)
    values: F32 = scale[..., None] * q
    return values.reshape(-1, 256)


def scales_and_minima(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight minima of six bits from the twelve bytes of Q4_K and Q5_K.

    Bytes 0-3 and 4-7: scales and minima 0-3, with bits 4 and 5 of the later four on top. Bytes 8-11: the low halves of
    scales 4-7 and, in their high halves, of minima 4-7.
    """
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, rest & 15 | first >> 2 & 48], axis=1)
    minima = np.concatenate([second & 63, rest >> 4 | second >> 2 & 48], axis=1)
    return scales, minima


def _of_eight_runs(blocks: Bytes, q: Bytes) -> F32:
    """| scale f16 | minimum f16 | 12 bytes of scales and minima | ...  value = scale * s * q - minimum * m"""
    scales, minima = scales_and_minima(blocks[:, 4:16])
    scale = _half(blocks, 0) * scales.astype(np.float32)
    minimum = _half(blocks, 2) * minima.astype(np.float32)
    runs = q.reshape(-1, 8, 32).astype(np.float32)
    values: F32 = scale[..., None] * runs - minimum[..., None]
    return values.reshape(-1, 256)


def q4_k(blocks: Bytes) -> F32:
    """... | 128 bytes of nibbles: of each 32 bytes the low halves are one run, the high ones the next |"""
    return _of_eight_runs(blocks, _nibbles(blocks[:, 16:], 32))


def q5_k(blocks: Bytes) -> F32:
    """... | 32 bytes of high bits: bit j of byte i belongs to value i of run j | nibbles as in Q4_K |"""
    high = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1) & np.uint8(1)
    return _of_eight_runs(blocks, _nibbles(blocks[:, 48:], 32) | high.reshape(-1, 256) << np.uint8(4))


def q6_k(blocks: Bytes) -> F32:
    """| 128 bytes of low nibbles | 64 bytes of pairs of high bits | 16 x int8 scale | scale f16 |

    value = scale * s * (q - 32). Of each half of 128 values: byte i of the 64 low bytes holds values i and 64 + i, byte
    i of the 32 high ones the pairs of values i, 32 + i, 64 + i and 96 + i.
    """
    low = _nibbles(blocks[:, :128], 64)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3).reshape(-1, 256)
    scale = _half(blocks, 208) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    q = (low | high << 4).astype(np.float32) - np.float32(32)
    return (scale[..., None] * q.reshape(-1, 16, 16)).reshape(-1, 256)


def iq4_nl(blocks: Bytes) -> F32:
    """| scale f16 | 16 bytes of nibbles |  value = scale * IQ4_VALUES[q]"""
    return _half(blocks, 0) * IQ4_VALUES[_nibbles(blocks[:, 2:])]


def iq4_xs(blocks: Bytes) -> F32:
    """| scale f16 | 8 x 2 high bits of scales u16 | 4 bytes of their nibbles | 128 bytes of nibbles |

    A run of 32 has a scale of six bits less 32; its sixteen bytes hold values 0-15 low, 16-31 high.
    """
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    codes = _nibble_pairs(blocks[:, 4:8]) | high.astype(np.uint8) << 4
    scale = _half(blocks, 0) * (codes.astype(np.float32) - np.float32(32))
    return (scale[..., None] * IQ4_VALUES[_nibbles(blocks[:, 8:])].reshape(-1, 8, 32)).reshape(-1, 256)


def _nibble_pairs(packed: Bytes) -> Bytes:
    """Low and high half of each byte, side by side."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
