"""A tensor on its way into a file: what it will be called, of which type, and its bytes piece by piece.

What is held at a time is the tensor's bytes where they have to be made, else views of the mapped source, and a few
pieces of decoded values. It knows types and rows; containers are written elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from puna.errors import ModelFileError
from puna.kernels.reference.dequantize import dequantize
from puna.kernels.tensor import BLOCK_SIZES, RawTensor
from puna.models.quantize import quantize

Bytes = npt.NDArray[np.uint8]

PIECE_VALUES = 1 << 19  # decoded at a time by each thread: what stays in its cache is encoded several times as fast
PIECE_BYTES = 16 << 20  # copied at a time


@dataclass(frozen=True)
class Target:
    """`source` has the shape that is written; `type` is what its values become."""

    name: str
    type: str
    source: RawTensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def nbytes(self) -> int:
        values, size = BLOCK_SIZES[self.type]
        return self.source.elements // values * size


def encoded(target: Target) -> Iterator[Bytes]:
    """The bytes of a target, in pieces. Raises ModelFileError where a value does not fit into the type."""
    data = target.source.data
    if target.type == target.source.type:
        for start in range(0, len(data), PIECE_BYTES):
            yield data[start : start + PIECE_BYTES]
        return
    if not target.source.elements:
        return
    width = target.shape[-1] if target.shape else 1
    values, size = BLOCK_SIZES[target.source.type]
    row_bytes = width // values * size
    rows = target.source.elements // width
    step = max(1, PIECE_VALUES // width)

    def encode(start: int) -> Bytes:
        stop = min(rows, start + step)
        part = RawTensor(
            target.source.name,
            target.source.type,
            (stop - start, width),
            data[start * row_bytes : stop * row_bytes],
        )
        try:
            return quantize(dequantize(part), target.type).reshape(-1)
        except ModelFileError as error:
            raise ModelFileError(f"tensor {target.name!r}: {error}") from None

    threads = os.cpu_count() or 1
    starts = range(0, rows, step)
    with ThreadPoolExecutor(threads) as pool:  # NumPy lets go of the interpreter while it computes
        for first in range(0, len(starts), 2 * threads):
            yield from pool.map(encode, starts[first : first + 2 * threads])
