"""Weights of the program back into tensors as a container keeps them: weights.py in the other direction.

A container's table says of each weight which piece or rearrangement of which tensor it is. Here every such step is
undone: pieces of rows are put together, rows brought into the file's order, matrices turned back, ones taken off norms,
stacks taken apart. Bytes are made when they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from puna.kernels.reference.dequantize import dequantize
from puna.kernels.tensor import BLOCK_SIZES, MadeTensor, RawTensor
from puna.models.weights import Ones, Picked, PlusOne, Rows, Source, Stacked, Turned


def place(weights: Mapping[str, RawTensor], sources: Mapping[str, Source]) -> dict[str, RawTensor]:
    """Tensors by the container's names. Where two weights are the same tensor (a norm that branches share) the first
    stands. Raises KeyError for a weight that the container has no place for."""
    placed: dict[str, RawTensor] = {}
    pieces: dict[Source, list[tuple[int, RawTensor]]] = {}
    for name, tensor in weights.items():
        source = sources[name]
        if isinstance(source, Rows):
            pieces.setdefault(source.of, []).append((source.start, tensor))
        else:
            _put(tensor, source, placed)
    for source, parts in pieces.items():
        _put(_joined([tensor for _, tensor in sorted(parts, key=lambda part: part[0])]), source, placed)
    return placed


def picked(tensor: RawTensor, order: np.ndarray[tuple[int], np.dtype[np.intp]]) -> RawTensor:
    """Row i becomes row order[i] of the tensor."""
    rows = len(order)
    return MadeTensor(tensor.name, tensor.type, tensor.shape, lambda: tensor.data.reshape(rows, -1)[order].reshape(-1))


def as_float32(tensor: RawTensor) -> RawTensor:
    if tensor.type == "F32":
        return tensor
    return MadeTensor(tensor.name, "F32", tensor.shape, lambda: dequantize(tensor).view(np.uint8).reshape(-1))


def _put(tensor: RawTensor, source: Source, placed: dict[str, RawTensor]) -> None:
    match source:
        case str():
            placed.setdefault(source, tensor)
        case Picked():
            _put(picked(tensor, np.argsort(np.asarray(source.order))), source.of, placed)
        case Turned():
            _put(_turned(tensor), source.of, placed)
        case PlusOne():
            _put(_less_one(tensor), source.of, placed)
        case Stacked():
            for index, part in enumerate(source.of):
                _put(_member(tensor, index), part, placed)
        case Ones():
            pass  # of no tensor
        case Rows():
            raise KeyError(f"{tensor.name}: pieces of pieces of a tensor have no way back")


def _joined(parts: list[RawTensor]) -> RawTensor:
    if len(parts) == 1:
        return parts[0]
    if len({part.type for part in parts}) > 1:
        parts = [as_float32(part) for part in parts]
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return MadeTensor(
        parts[0].name, parts[0].type, shape, lambda: np.concatenate([part.data.reshape(-1) for part in parts])
    )


def _turned(tensor: RawTensor) -> RawTensor:
    """Plain types keep theirs, blocks are decoded: they lie along rows."""
    if BLOCK_SIZES[tensor.type][0] > 1:
        tensor = as_float32(tensor)
    size = BLOCK_SIZES[tensor.type][1]
    rows, columns = tensor.shape
    return MadeTensor(
        tensor.name,
        tensor.type,
        (columns, rows),
        lambda: np.ascontiguousarray(tensor.data.reshape(rows, columns, size).transpose(1, 0, 2)).reshape(-1),
    )


def _less_one(tensor: RawTensor) -> RawTensor:
    return MadeTensor(
        tensor.name, "F32", tensor.shape, lambda: (dequantize(tensor) - np.float32(1)).view(np.uint8).reshape(-1)
    )


def _member(tensor: RawTensor, index: int) -> RawTensor:
    size = tensor.nbytes // tensor.shape[0]
    return MadeTensor(
        tensor.name, tensor.type, tensor.shape[1:], lambda: tensor.data[index * size : (index + 1) * size]
    )
