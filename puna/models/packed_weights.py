"""Weights of quantised checkpoints as plain tensors: AWQ, GPTQ, compressed-tensors and FP8.

Such folders keep X.qweight or X.weight_packed with scales and zeros beside it, where families look for X.weight. Here
each becomes an X.weight that is decoded when its bytes are asked for, with the rounding of the packages that write
these files: values have the scales' type. What a checkpoint does to activations is left out. Methods that are not
known are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from puna.kernels.reference.dequantize import dequantize
from puna.kernels.tensor import MadeTensor, RawTensor
from puna.models.gguf_parse import brief
from puna.models.quantize import quantize

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
Fail = Callable[[str], NoReturn]

METHODS = ("awq", "gptq", "compressed-tensors", "fp8", "fbgemm_fp8")
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that nibble i of a word belongs to
FLOAT8 = ("F8_E4M3", "F8_E5M2")
FLOATS = ("F16", "BF16", "F32")
WHOLE = ("I32", "I64")  # of shapes and of groups
_INTEGERS: dict[str, np.dtype[Any]] = {
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}


def plain_weights(tensors: Mapping[str, RawTensor], config: Mapping[str, Any], fail: Fail) -> dict[str, RawTensor]:
    """All tensors, and an X.weight for every packed X. `config` is config.json, `fail` raises ModelFileError."""
    stated = config.get("quantization_config") or config.get("compression_config")
    if stated is None:
        return dict(tensors)
    if not isinstance(stated, Mapping):
        fail("config.json: 'quantization_config' has to be an object")
    method = stated.get("quant_method", "compressed-tensors" if "config_groups" in stated else None)
    if method not in METHODS:
        fail(f"the weights are quantised by {brief(method)}, which Puna does not read; it reads: {', '.join(METHODS)}")
    found = dict(tensors)
    for name in tensors:
        module, _, part = name.rpartition(".")
        made: RawTensor | None = None
        if part == "qweight":
            read = _awq if method == "awq" else _gptq
            made = read(tensors, module, stated, fail)
        elif part == "weight_packed":
            made = _packed(tensors, module, fail)
        elif part == "weight" and tensors[name].type in (*FLOAT8, "I8"):
            made = _scaled(tensors, module, stated, fail)
        if made is not None:
            found[f"{module}.weight"] = made
    return found


def _awq(tensors: Mapping[str, RawTensor], module: str, stated: Mapping[str, Any], fail: Fail) -> RawTensor:
    """| qweight [in, out / 8] | qzeros [groups, out / 8] | scales [groups, out] |  value = scale * (q - zero)"""
    if stated.get("bits", stated.get("w_bit", 4)) != 4 or str(stated.get("version", "gemm")).lower() != "gemm":
        bits, version = stated.get("bits"), stated.get("version")
        fail(f"AWQ of {brief(bits)} bits, version {brief(version)}, is not supported; 4 bits, gemm is")
    words, zeros, scales = (_part(tensors, module, part, 2, fail) for part in ("qweight", "qzeros", "scales"))
    inputs, outputs = words.shape[0], words.shape[1] * 8
    groups = scales.shape[0]
    _expect(fail, module, groups > 0 and inputs > 0 and inputs % groups == 0)
    _expect(fail, module, scales.shape == (groups, outputs) and zeros.shape == (groups, outputs // 8))

    def values() -> F32:
        q, zero = (_columns(part, AWQ_ORDER) for part in (words, zeros))
        factors = _floats(scales)
        repeat = inputs // groups
        made: F32 = (q - np.repeat(zero, repeat, 0)) * np.repeat(factors, repeat, 0)
        return made.T

    return _made(module, scales.type, (outputs, inputs), values)


def _gptq(tensors: Mapping[str, RawTensor], module: str, stated: Mapping[str, Any], fail: Fail) -> RawTensor:
    """| qweight [in / n, out] | qzeros [groups, out / n] | scales [groups, out] | g_idx [in] |, n values a word.

    The first format stores zeros less one; "gptq_v2" stores them as they are.
    """
    bits, layout = stated.get("bits"), stated.get("checkpoint_format")
    if type(bits) is not int or bits not in (2, 4, 8):
        fail(f"GPTQ of {brief(bits)} bits is not supported; 2, 4 and 8 are")
    if layout not in (None, "gptq", "gptq_v2"):
        fail(f"GPTQ's checkpoint_format {brief(layout)} is not supported; 'gptq' and 'gptq_v2' are")
    count = 32 // bits
    words, zeros, scales = (_part(tensors, module, part, 2, fail) for part in ("qweight", "qzeros", "scales"))
    inputs, outputs, groups = words.shape[0] * count, words.shape[1], scales.shape[0]
    _expect(fail, module, scales.shape == (groups, outputs) and zeros.shape == (groups, outputs // count))
    index = tensors.get(f"{module}.g_idx")
    _expect(fail, module, index is None or (index.shape == (inputs,) and index.type in WHOLE))
    _expect(fail, module, groups > 0 and inputs > 0 and (index is not None or inputs % groups == 0))
    offset = 0 if layout == "gptq_v2" else 1

    def values() -> F32:
        q = _spread(_integers(words).T, bits).T
        zero = _spread(_integers(zeros), bits) + offset
        zero &= (1 << bits) - 1
        group = np.arange(inputs) // (inputs // groups) if index is None else _integers(index)
        if group.min() < 0 or group.max() >= groups:
            fail(f"tensor '{module}.g_idx' names group {int(group.max())} of {groups}")
        made: F32 = (q - zero[group]).astype(np.float32) * _floats(scales)[group]
        return made.T

    return _made(module, scales.type, (outputs, inputs), values)


def _packed(tensors: Mapping[str, RawTensor], module: str, fail: Fail) -> RawTensor:
    """compressed-tensors | weight_packed [out, in / n] | weight_scale [out, groups] | weight_shape | maybe
    weight_zero_point [out / n, groups] and weight_g_idx [in] |: whole numbers around zero, stored with half added."""
    words, scales = (_part(tensors, module, part, 2, fail) for part in ("weight_packed", "weight_scale"))
    if f"{module}.weight_shape" not in tensors:
        fail(f"tensor '{module}.weight_shape' is missing; '{module}.weight_packed' needs it")
    stated_shape = tensors[f"{module}.weight_shape"]
    if stated_shape.type not in WHOLE or stated_shape.shape != (2,):
        found = f"{stated_shape.type} of shape {stated_shape.shape}"
        fail(f"tensor '{module}.weight_shape' is {found}; expected two whole numbers ({' or '.join(WHOLE)})")
    outputs, inputs = (int(extent) for extent in _integers(stated_shape))
    _expect(fail, module, outputs > 0 and inputs > 0)
    groups = scales.shape[1]
    bits = next((bits for bits in (4, 8) if words.shape == (outputs, -(-inputs // (32 // bits)))), 0)
    _expect(fail, module, bits > 0 and scales.shape[0] == outputs and groups > 0)
    zeros, index = (tensors.get(f"{module}.weight_{part}") for part in ("zero_point", "g_idx"))
    _expect(fail, module, index is None or (index.shape == (inputs,) and index.type in WHOLE))
    _expect(fail, module, zeros is None or zeros.type == "I32")
    _expect(fail, module, zeros is None or zeros.shape == (-(-outputs * bits // 32), groups))
    _expect(fail, module, index is not None or inputs % groups == 0)
    half = 1 << (bits - 1)

    def values() -> F32:
        q = (_spread(_integers(words), bits)[:, :inputs] - half).astype(np.float32)
        group = np.arange(inputs) // (inputs // groups) if index is None else _integers(index)
        if group.min() < 0 or group.max() >= groups:
            fail(f"tensor '{module}.weight_g_idx' names group {int(group.max())} of {groups}")
        if zeros is not None:
            zero = (_spread(_integers(zeros).T, bits)[:, :outputs].T - half).astype(np.float32)
            q -= zero[:, group]
        made: F32 = q * _floats(scales)[:, group]
        return made

    return _made(module, scales.type, (outputs, inputs), values)


def _scaled(tensors: Mapping[str, RawTensor], module: str, stated: Mapping[str, Any], fail: Fail) -> RawTensor:
    """FP8 or int8 with one scale, one a row, or one a block (`weight_scale_inv`, which multiplies all the same)."""
    weight = tensors[f"{module}.weight"]
    names = [f"{module}.weight_scale", f"{module}.weight_scale_inv"]
    scales = next((tensors[name] for name in names if name in tensors), None)
    if scales is None:
        fail(f"tensor '{module}.weight' is {weight.type}; expected '{names[0]}' or '{names[1]}' beside it")
    _expect(fail, module, len(weight.shape) == 2 and scales.type in FLOATS)
    blocks = (*(1,) * (2 - len(scales.shape)), *scales.shape) if scales.elements == 1 else scales.shape
    blocks = (*blocks, 1) if len(blocks) == 1 else blocks
    _expect(fail, module, len(blocks) == 2 and min(blocks) > 0)
    even = [-(-extent // count) for extent, count in zip(weight.shape, blocks, strict=True)]
    size = stated.get("weight_block_size") if scales.elements > 1 and "inv" in scales.name else even
    if not isinstance(size, list) or len(size) != 2 or not all(type(extent) is int and extent > 0 for extent in size):
        fail("config.json: 'weight_block_size' has to be two whole numbers")
    _expect(fail, module, all(-(-weight.shape[axis] // size[axis]) == blocks[axis] for axis in (0, 1)))
    zeros = tensors.get(f"{module}.weight_zero_point")
    _expect(fail, module, zeros is None or (zeros.elements == scales.elements and zeros.type in _INTEGERS))

    def values() -> F32:
        q = _float8(weight) if weight.type in FLOAT8 else _integers(weight).astype(np.float32)
        if zeros is not None:
            q = q - _integers(zeros).astype(np.float32).reshape(blocks)
        factors = _floats(scales).reshape(blocks)
        if factors.size > 1:
            for axis in (0, 1):
                factors = np.repeat(factors, size[axis], axis)
            factors = factors[: weight.shape[0], : weight.shape[1]]
        made: F32 = q * factors
        return made

    return _made(module, scales.type, weight.shape, values)


def _made(module: str, type: str, shape: tuple[int, ...], values: Callable[[], F32]) -> RawTensor:
    return MadeTensor(f"{module}.weight", type, shape, lambda: quantize(values(), type).reshape(-1))


def _part(tensors: Mapping[str, RawTensor], module: str, part: str, axes: int, fail: Fail) -> RawTensor:
    tensor = tensors.get(f"{module}.{part}")
    wanted = FLOATS if "scale" in part else ("I32",)
    if tensor is None or tensor.type not in wanted or len(tensor.shape) != axes:
        found = "missing" if tensor is None else f"{tensor.type} of shape {tensor.shape}"
        fail(f"tensor '{module}.{part}' is {found}; a quantised weight needs it as a matrix of {' or '.join(wanted)}")
    return tensor


def _expect(fail: Fail, module: str, fits: bool) -> None:
    if not fits:
        fail(f"the parts of quantised weight '{module}' do not fit each other: a shape or type is not their format's")


def _integers(tensor: RawTensor) -> npt.NDArray[Any]:
    return np.ascontiguousarray(tensor.data).view(_INTEGERS[tensor.type]).reshape(tensor.shape)


def _floats(tensor: RawTensor) -> F32:
    return dequantize(tensor)


def _spread(words: npt.NDArray[Any], bits: int) -> I32:
    """[rows, n] words -> [rows, n * 32 / bits] whole numbers, the lowest bits first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    parts = np.ascontiguousarray(words).view(np.uint32)[:, :, None] >> shifts & np.uint32((1 << bits) - 1)
    return parts.reshape(len(words), -1).astype(np.int32)


def _columns(tensor: RawTensor, order: Sequence[int]) -> F32:
    """The nibbles of [rows, n] words as [rows, 8 n], nibble i of a word in its column order[i]."""
    nibbles = _spread(_integers(tensor), 4).reshape(tensor.shape[0], -1, 8)
    return nibbles[:, :, np.argsort(order)].reshape(tensor.shape[0], -1).astype(np.float32)


def _float8(tensor: RawTensor) -> F32:
    return _FLOAT8[tensor.type][tensor.data].reshape(tensor.shape)


def _table(exponent_bits: int, *, infinite: bool) -> F32:
    """What each of 256 bytes stands for. E4M3 has no infinities and NaN in the last code alone."""
    mantissa_bits, codes = 7 - exponent_bits, np.arange(256)
    exponent, mantissa = codes >> mantissa_bits & (1 << exponent_bits) - 1, codes & (1 << mantissa_bits) - 1
    bias = (1 << (exponent_bits - 1)) - 1
    whole = np.where(exponent > 0, 1.0, 0.0) + mantissa / (1 << mantissa_bits)
    values = np.ldexp(whole, np.maximum(exponent, 1) - bias)
    if infinite:
        values = np.where(exponent == (1 << exponent_bits) - 1, np.where(mantissa > 0, np.nan, np.inf), values)
    else:
        values = np.where((codes & 127) == 127, np.nan, values)
    found: F32 = np.where(codes >= 128, -values, values).astype(np.float32)
    return found


_FLOAT8 = {"F8_E4M3": _table(4, infinite=False), "F8_E5M2": _table(5, infinite=True)}
