"""Where a weight of the program comes from: a tensor of the file, or a piece or a rearrangement of some.

Files disagree about what is one tensor: queries, keys and values may be fused, experts stacked or apart, matrices lie
turned, norms are stored without their one. A family says which it is; `find` makes the tensor. Pieces of rows stay
views of the mapped file; what has to be rearranged is made when its bytes are asked for, and not kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from puna.kernels.tensor import BLOCK_SIZES, MadeTensor, RawTensor
from puna.models.model_file import ModelFile

Bytes = npt.NDArray[np.uint8]

_PLAIN_TYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}  # BF16 by its bits


@dataclass(frozen=True)
class Rows:
    """Rows `start` to `stop` - 1, along the first axis."""

    of: Source
    start: int
    stop: int


@dataclass(frozen=True)
class Picked:
    """Rows in another order: row i is row order[i]."""

    of: Source
    order: tuple[int, ...]


@dataclass(frozen=True)
class Turned:
    """A matrix that lies as (in_features, out_features). F32, F16 and BF16 only."""

    of: Source


@dataclass(frozen=True)
class PlusOne:
    """A norm that is stored as its distance from one. F32, F16 and BF16 only; becomes F32."""

    of: Source


@dataclass(frozen=True)
class Stacked:
    """Matrices of equal shape and type as one: a new first axis counts them."""

    of: tuple[Source, ...]


@dataclass(frozen=True)
class Ones:
    """So many ones, of no tensor at all: the weight of a norm that has none."""

    count: int


Source = str | Rows | Picked | Turned | PlusOne | Stacked | Ones


class MissingTensorError(LookupError):
    """A file has no tensor of that name."""


def find(file: ModelFile, source: Source) -> RawTensor:
    """Raises MissingTensorError, or ModelFileError where a tensor cannot be taken as the source says."""
    match source:
        case str():
            tensor = file.tensors.get(source)
            if tensor is None:
                raise MissingTensorError(source)
            return tensor
        case Rows():
            return _rows(file, find(file, source.of), source.start, source.stop)
        case Picked():
            return _picked(file, find(file, source.of), source.order)
        case Turned():
            return _turned(file, find(file, source.of))
        case PlusOne():
            return _plus_one(file, find(file, source.of))
        case Ones():
            count = source.count
            return MadeTensor("ones", "F32", (count,), lambda: np.ones(count, "<f4").view(np.uint8))
        case Stacked():
            return _stacked(file, [find(file, part) for part in source.of])


def first_name(source: Source) -> str:
    """A tensor that the source is made of, for messages; "" where it is made of none."""
    while not isinstance(source, str):
        if isinstance(source, Ones):
            return ""
        source = source.of[0] if isinstance(source, Stacked) else source.of
    return source


def _row_bytes(tensor: RawTensor) -> int:
    values, size = BLOCK_SIZES[tensor.type]
    return tensor.elements // tensor.shape[0] // values * size


def _rows(file: ModelFile, tensor: RawTensor, start: int, stop: int) -> RawTensor:
    if stop > tensor.shape[0]:
        file.fail(f"tensor {tensor.name!r} has {tensor.shape[0]} rows; rows {start} to {stop - 1} are asked of it")
    shape = (stop - start, *tensor.shape[1:])
    if isinstance(tensor, MadeTensor):
        return _made_of_rows(tensor, shape, slice(start, stop))
    row = _row_bytes(tensor) if tensor.shape[0] else 0
    return replace(tensor, shape=shape, data=tensor.data[start * row : stop * row])


def _picked(file: ModelFile, tensor: RawTensor, order: Sequence[int]) -> RawTensor:
    if len(order) != tensor.shape[0]:
        file.fail(f"tensor {tensor.name!r} has {tensor.shape[0]} rows; expected {len(order)}")
    return _made_of_rows(tensor, tensor.shape, np.asarray(order))


def _made_of_rows(tensor: RawTensor, shape: tuple[int, ...], rows: slice | npt.NDArray[np.int64]) -> MadeTensor:
    """Rows of a tensor, and the same rows of its codes."""

    def codes() -> RawTensor | None:
        whole = tensor.as_codes()
        return None if whole is None else _made_of_rows(whole, shape, rows)

    def make() -> Bytes:
        return tensor.data.reshape(tensor.shape[0], -1)[rows].reshape(-1)

    return MadeTensor(tensor.name, tensor.type, shape, make, codes=codes)


def _turned(file: ModelFile, tensor: RawTensor) -> RawTensor:
    dtype = _plain(file, tensor, "turned")
    if len(tensor.shape) != 2:
        file.fail(f"tensor {tensor.name!r} has shape {tensor.shape}; expected a matrix")

    def make() -> Bytes:
        return np.ascontiguousarray(tensor.data.view(dtype).reshape(tensor.shape).T).view(np.uint8).reshape(-1)

    return MadeTensor(tensor.name, tensor.type, tensor.shape[::-1], make)


def _plus_one(file: ModelFile, tensor: RawTensor) -> RawTensor:
    dtype = _plain(file, tensor, "added to")

    def make() -> Bytes:
        values = np.ascontiguousarray(tensor.data).view(dtype)
        exact = (values.astype(np.uint32) << 16).view(np.float32) if tensor.type == "BF16" else values
        return (np.float32(1) + exact.astype(np.float32)).view(np.uint8)

    return MadeTensor(tensor.name, "F32", tensor.shape, make)


def _stacked(file: ModelFile, parts: Sequence[RawTensor]) -> RawTensor:
    first = parts[0]
    for part in parts:
        if (part.type, part.shape) != (first.type, first.shape):
            file.fail(
                f"tensor {part.name!r} is {part.type} of shape {part.shape}, but {first.name!r}, which belongs beside "
                f"it, is {first.type} of shape {first.shape}"
            )
    return _stack(parts)


def _stack(parts: Sequence[RawTensor]) -> MadeTensor:
    first = parts[0]

    def codes() -> RawTensor | None:
        """Where all parts have them in one type: matrices of a stack are packed alike."""
        found = [code for part in parts if (code := part.as_codes()) is not None]
        same = len(found) == len(parts) and len({code.type for code in found}) == 1
        return _stack(found) if same else None

    def make() -> Bytes:
        return np.concatenate([part.data for part in parts])

    return MadeTensor(first.name, first.type, (len(parts), *first.shape), make, tuple(parts), codes)


def _plain(file: ModelFile, tensor: RawTensor, done: str) -> np.dtype[np.generic]:
    dtype: Mapping[str, np.dtype[np.generic]] = _PLAIN_TYPES  # type: ignore[assignment]
    if tensor.type not in dtype:
        file.fail(f"tensor {tensor.name!r} is {tensor.type}; it has to be {done}, which takes F32, F16 or BF16")
    return dtype[tensor.type]
