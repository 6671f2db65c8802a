"""The parts of a packed weight, each checked against the others before anything is decoded.

A checkpoint's files come from strangers: types, shapes, counts of groups and the numbers of config.json are all
checked here. Every error names the file, the tensor, what it is, and what it has to be. How the parts become values
is packed_weights.py's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from puna.kernels.reference.dequantize import dequantize
from puna.kernels.tensor import RawTensor
from puna.models.gguf_parse import brief, clipped
from puna.models.quantize import LARGEST_F16

F32 = npt.NDArray[np.float32]

FLOATS = ("F16", "BF16", "F32")
WHOLE = ("I32", "I64")  # of shapes and of groups
REMEDY = "fetch the file again, or take the model in another format"
_INTEGERS: dict[str, np.dtype[Any]] = {
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}


class Fail(Protocol):
    def __call__(self, message: str, tensor: str | None = None, /) -> NoReturn:
        """Raises ModelFileError, which names the file that holds `tensor`, or the folder."""
        ...


def stated_object(tensors: Mapping[str, RawTensor], config: Mapping[str, Any], fail: Fail) -> Mapping[str, Any] | None:
    """What config.json says of quantisation; None where it says nothing and nothing is packed."""
    for key in ("quantization_config", "compression_config"):
        stated = config.get(key)
        if isinstance(stated, Mapping) and stated:
            return stated
        if stated is not None and not isinstance(stated, Mapping):
            fail(f"config.json: {key!r} is {brief(stated)}; expected an object such as {{'quant_method': 'gptq', ...}}")
    packed = next((name for name in tensors if name.endswith((".qweight", ".weight_packed"))), None)
    if packed is not None:
        fail(
            f"tensor {clipped(packed)!r} is packed, and config.json does not say how: expected 'quantization_config'; "
            "older folders have it as quantize_config.json, whose entries belong there",
            packed,
        )
    return None


def part_of(tensors: Mapping[str, RawTensor], module: str, part: str, fail: Fail) -> RawTensor:
    """A matrix that a packed weight cannot do without: scales in floating point, anything else as words of 32 bits."""
    tensor = tensors.get(f"{module}.{part}")
    wanted = f"a matrix of {' or '.join(FLOATS if 'scale' in part else ('I32',))}"
    if tensor is None:
        beside = next(name for name in tensors if name.rpartition(".")[0] == module)
        fail(
            f"tensor '{clipped(module)}.{part}' is missing beside {clipped(beside)!r}; expected {wanted}: {REMEDY}",
            beside,
        )
    fits = tensor.type in (FLOATS if "scale" in part else ("I32",)) and len(tensor.shape) == 2 and min(tensor.shape) > 0
    expect(fail, tensor, fits, wanted)
    return tensor


def stated_group(
    stated: Mapping[str, Any], key: str, inputs: int, scales: RawTensor, axis: int, fail: Fail
) -> tuple[int, int]:
    """How many groups rows of `inputs` values have and how many values one has, the last maybe fewer. Where config.json
    does not say (-1: the whole row is one), the scales do."""
    size, groups = stated.get(key), scales.shape[axis]
    if size is None:
        expect(fail, scales, inputs % groups == 0, f"a count of groups that divides rows of {inputs} values")
        return groups, inputs // groups
    if type(size) is not int or (size < 1 and size != -1):
        fail(f"config.json: {key!r} is {brief(size)}; expected a whole number from 1 on, or -1 for whole rows")
    size = inputs if size == -1 else min(size, inputs)
    wanted = -(-inputs // size)
    why = f"{wanted} groups, for config.json cuts rows of {inputs} values into groups of {size}"
    expect(fail, scales, groups == wanted, why)
    return groups, size


def expect(fail: Fail, tensor: RawTensor, fits: bool, wanted: str, *beside: RawTensor) -> None:
    """`wanted`: what the tensor has to be, as others `beside` it have it."""
    if fits:
        return
    others = "".join(f", beside {clipped(other.name)!r} of shape {other.shape}" for other in beside)
    found = f"{tensor.type} of shape {tensor.shape}"
    fail(f"tensor {clipped(tensor.name)!r} is {found}; expected {wanted}{others}: {REMEDY}", tensor.name)


def groups_of(index: RawTensor, groups: int, fail: Fail) -> npt.NDArray[Any]:
    """The group of every value of a row."""
    found = whole_numbers(index)
    outside = found[(found < 0) | (found >= groups)]
    if outside.size:
        fail(
            f"tensor {clipped(index.name)!r} names group {int(outside[0])}; expected 0 to {groups - 1}: {REMEDY}",
            index.name,
        )
    return found


def whole_numbers(tensor: RawTensor) -> npt.NDArray[Any]:
    return np.ascontiguousarray(tensor.data).view(_INTEGERS[tensor.type]).reshape(tensor.shape)


def checked_values(values: Callable[[], F32], name: str, scales: RawTensor, fail: Fail) -> F32:
    """Decoded values, all of them finite as the scales' type has them."""
    largest = LARGEST_F16 if scales.type == "F16" else np.finfo(np.float32).max
    with np.errstate(all="ignore"):  # what overflows is named below
        made = values()
        peak = np.maximum(made.max(initial=0), -made.min(initial=0))
    if not peak <= largest:
        factors = dequantize(scales)
        wrong = np.argwhere(~np.isfinite(factors))
        if len(wrong):
            at = tuple(int(place) for place in wrong[0])
            what = f"tensor {clipped(scales.name)!r} has {factors[at]} at {at}; expected numbers"
        else:
            what = f"tensor {clipped(name)!r} decodes to {peak:g} in {scales.type}; expected at most {largest:g}"
        fail(f"{what}: {REMEDY}", scales.name)
    return made
