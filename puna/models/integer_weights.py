"""Weights that a checkpoint keeps as whole numbers: value = (code - zero) * scale, with a zero and a scale a group.

A weight of this kind can be had in two forms: as values, which is what the packages of such checkpoints decode, and as
blocks of 32 inputs, which take few bits and which the native core multiplies as they are. Knows the arithmetic, and
nothing of how the formats lay out their words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from puna.kernels.tensor import BLOCK_SIZES, MadeTensor, RawTensor
from puna.models.quantize import LARGEST_F16

F32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Whole = npt.NDArray[Any]

RUN = 32  # inputs of a block


@dataclass(frozen=True)
class IntegerWeight:
    """Of `shape` (outputs, inputs). What the functions make is not kept: `codes` uint8 [outputs, inputs], below
    2 ** bits; `zeros` uint8 and `scales` float32, [outputs, groups]; `group_of` the group of each input."""

    shape: tuple[int, int]
    bits: int
    codes: Callable[[], Bytes]
    zeros: Callable[[], Bytes]
    scales: Callable[[], F32]
    group_of: Callable[[], Whole]

    def values(self) -> F32:
        """float32 [outputs, inputs], not rounded to any narrower type."""
        group = self.group_of()
        values = self.codes().astype(np.float32)
        values -= self.zeros().astype(np.float32)[:, group]
        values *= self.scales()[:, group]
        return values

    def blocks(self, name: str) -> RawTensor | None:
        """The weight as blocks, to the last bit; None where no type of blocks can say it."""
        if self.block_type is None:
            return None
        return MadeTensor(name, self.block_type, self.shape, self._make_blocks)

    @cached_property
    def block_type(self) -> str | None:
        """Q4_0 and Q8_0 have one zero, in the middle, Q4_Z a zero a block. Scales have to be float16 numbers, as values
        are, and the inputs of a block, neighbours, of one group."""
        if self.shape[1] % RUN or self.bits > 8:
            return None
        group = self.group_of().reshape(-1, RUN)
        if (group != group[:, :1]).any():
            return None
        scales = self.scales()
        largest = LARGEST_F16 / ((1 << self.bits) - 1)
        if not np.abs(scales).max() <= largest or (scales.astype(np.float16).astype(np.float32) != scales).any():
            return None
        centred = bool((self.zeros() == 1 << (self.bits - 1)).all())
        if self.bits == 8:
            return "Q8_0" if centred else None
        return "Q4_0" if centred and self.bits == 4 else "Q4_Z"

    def _make_blocks(self) -> Bytes:
        """As puna/kernels/reference/dequantize.py draws them."""
        outputs, runs = self.shape[0], self.shape[1] // RUN
        group = self.group_of()[::RUN]
        codes = self.codes().reshape(outputs, runs, RUN)
        blocks = np.empty((outputs, runs, BLOCK_SIZES[str(self.block_type)][1]), np.uint8)
        blocks[:, :, :2] = _halves(self.scales()[:, group])
        if self.block_type == "Q8_0":
            np.bitwise_xor(codes, 128, out=blocks[:, :, 2:])
            return blocks.reshape(-1)
        if self.block_type == "Q4_Z":
            blocks[:, :, 2:4] = _halves(self.zeros()[:, group])
        np.bitwise_or(codes[:, :, : RUN // 2], codes[:, :, RUN // 2 :] << 4, out=blocks[:, :, -RUN // 2 :])
        return blocks.reshape(-1)


def _halves(numbers: npt.NDArray[Any]) -> Bytes:
    """[rows, n] -> [rows, n, 2]"""
    return np.ascontiguousarray(numbers.astype("<f2")).view(np.uint8).reshape(*numbers.shape, 2)


def along(words: npt.NDArray[Any], bits: int) -> Bytes:
    """Codes of [rows, n] words of 32 bits as [rows, n * 32 / bits], the lowest bits first."""
    count = 32 // bits
    parts = np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1, 4)
    out = np.empty((*parts.shape[:2], count), np.uint8)
    for code in range(count):
        _take(parts, bits, code, out[:, :, code])
    return out.reshape(len(words), -1)


def across(words: npt.NDArray[Any], bits: int, order: tuple[int, ...] = ()) -> Bytes:
    """Codes of [rows, n] words as [n * 32 / bits, rows]. Code i of word w is row w * 32 / bits + i, or + order[i]."""
    count = 32 // bits
    parts = np.ascontiguousarray(words.T).view(np.uint8).reshape(words.shape[1], -1, 4)
    out = np.empty((words.shape[1], count, len(words)), np.uint8)
    for code in range(count):
        _take(parts, bits, code, out[:, order[code] if order else code])
    return out.reshape(-1, len(words))


def _take(parts: Bytes, bits: int, code: int, out: Bytes) -> None:
    """Code `code` of words whose four bytes are the last axis, the lowest first."""
    byte, shift = divmod(bits * code, 8)
    np.right_shift(parts[:, :, byte], np.uint8(shift), out=out)
    np.bitwise_and(out, np.uint8((1 << bits) - 1), out=out)
