"""A weight as it lies in its file: element type, shape and raw bytes.

Backends repack or decode these when a model is loaded. The bytes are usually a read-only view into a memory-mapped
file, so a tensor must not outlive its file. This module knows how large each type is, not how to decode it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Element type -> (elements a block, bytes a block). Names are those of GGUF, or of safetensors.
BLOCK_SIZES: dict[str, tuple[int, int]] = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "IQ1_S": (256, 50),
    "IQ1_M": (256, 56),
    "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74),
    "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98),
    "IQ3_S": (256, 110),
    "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
    "TQ1_0": (256, 54),
    "TQ2_0": (256, 66),
    "MXFP4": (32, 17),
    "NVFP4": (64, 36),
    # of no file: what 4-bit checkpoints with zero points are run as
    "Q4_Z": (32, 20),
    # of checkpoints, beside the weights that they help to decode
    "F64": (1, 8),
    "F8_E4M3": (1, 1),
    "F8_E5M2": (1, 1),
    "I8": (1, 1),
    "U8": (1, 1),
    "BOOL": (1, 1),
    "I16": (1, 2),
    "I32": (1, 4),
    "I64": (1, 8),
}


# Types that are not codes of few bits under shared factors.
PLAIN_TYPES = frozenset(("F32", "F16", "BF16", "F64", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL", "I16", "I32", "I64"))
# Types that the native core packs as they are. Of the others, those of few bits are decoded for it and packed as whole
# multiples of a factor for sixteen values, which loses nothing; the rest are decoded to float32.
NATIVE_TYPES = (
    *("BF16", "F16", "F32", "IQ4_NL", "IQ4_XS", "Q2_K", "Q3_K", "Q4_0", "Q4_1", "Q4_K", "Q4_Z", "Q5_0", "Q5_1"),
    *("Q5_K", "Q6_K", "Q8_0"),
)
# Bytes that packed weights take in the native core (csrc/layouts.hpp), factors included.
_PACKED_BYTES = {  # of 32 inputs of 32 rows
    "F16": 2048,
    "BF16": 2048,
    "Q4_0": 576,
    "Q4_1": 640,
    "Q4_Z": 640,
    "Q5_0": 704,
    "Q5_1": 768,
    "Q8_0": 1088,
    "Q2_K": 656,
    "Q3_K": 584,
    "Q4_K": 592,
    "Q5_K": 720,
    "Q6_K": 840,
    "IQ4_NL": 576,
    "IQ4_XS": 552,
}
_GRID_BYTES, _FLOAT_BYTES = 1280, 4096


def packed_bits(type: str) -> float:
    """Bits a weight of a matrix takes once the native core has packed it."""
    return _PACKED_BYTES.get(type, _FLOAT_BYTES if type in PLAIN_TYPES else _GRID_BYTES) / 128


def multiplied(tensor: RawTensor, compute: str) -> RawTensor:
    """The form in which the native core packs a matrix: in few bits where there is such a form, but values where
    `compute` is "float32"."""
    return (tensor.as_codes() or tensor) if compute == "int8" else tensor


@dataclass(frozen=True)
class RawTensor:
    """One named weight.

    `shape` is row-major: (out_features, in_features) for a matrix, (width,) for a vector. Quantised types are cut into
    blocks along the last axis, whose length is a multiple of the block. `data` is uint8 of shape (bytes,).
    """

    name: str
    type: str
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]

    @property
    def elements(self) -> int:
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    @property
    def nbytes(self) -> int:
        """Bytes of `data`, known without making them."""
        values, size = BLOCK_SIZES[self.type]
        return self.elements // values * size

    def renamed(self, name: str) -> RawTensor:
        return RawTensor(name, self.type, self.shape, self.data)

    def as_codes(self) -> RawTensor | None:
        """The same weight in a type of few bits, where its values were decoded from such and only its values are
        rounded to `type`; None where there is no other form."""
        return None

    def matrices(self) -> Iterator[RawTensor]:
        """Those that a tensor of three extents holds, in their order."""
        data, size = self.data, self.nbytes // self.shape[0]
        for index in range(self.shape[0]):
            part = data[index * size : (index + 1) * size]
            yield RawTensor(f"{self.name}.{index}", self.type, self.shape[1:], part)


class MadeTensor(RawTensor):
    """A tensor whose bytes are made from others whenever they are asked for, and not kept.

    `parts`: the tensors that it is a stack of, each of which can be had without the others. `codes`: see `as_codes`.
    """

    _make: Callable[[], npt.NDArray[np.uint8]]
    _parts: tuple[RawTensor, ...]
    _codes: Callable[[], RawTensor | None]

    def __init__(
        self,
        name: str,
        type: str,
        shape: tuple[int, ...],
        make: Callable[[], npt.NDArray[np.uint8]],
        parts: tuple[RawTensor, ...] = (),
        codes: Callable[[], RawTensor | None] = lambda: None,
    ) -> None:
        fields = {"name": name, "type": type, "shape": shape, "_make": make, "_parts": parts, "_codes": codes}
        for field, value in fields.items():
            object.__setattr__(self, field, value)

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        return self._make()

    def renamed(self, name: str) -> RawTensor:
        return MadeTensor(name, self.type, self.shape, self._make, self._parts, self._codes)

    def as_codes(self) -> RawTensor | None:
        codes = self._codes()
        return None if codes is None else codes.renamed(self.name)

    def matrices(self) -> Iterator[RawTensor]:
        if not self._parts:
            yield from super().matrices()
        for index, part in enumerate(self._parts):
            yield part.renamed(f"{self.name}.{index}")
