"""Weights of quantised checkpoints as plain tensors: AWQ, GPTQ, compressed-tensors and FP8.

Such folders keep X.qweight or X.weight_packed with scales and zeros beside it, where families look for X.weight. Here
each becomes an X.weight that is decoded when its bytes are asked for, with the rounding of the packages that write
these files: values have the scales' type. Whole numbers can be had as blocks of codes too (integer_weights.py). What a
checkpoint does to activations is left out. Methods that are not known are refused by name; what contradicts itself is
refused with the tensor, what it is and what it has to be (packed_parts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from puna.kernels.reference.dequantize import dequantize
from puna.kernels.tensor import MadeTensor, RawTensor
from puna.models.gguf_parse import brief
from puna.models.integer_weights import IntegerWeight, across, along
from puna.models.packed_parts import (
    FLOATS,
    REMEDY,
    WHOLE,
    Fail,
    checked_values,
    expect,
    groups_of,
    part_of,
    stated_group,
    stated_object,
    whole_numbers,
)
from puna.models.quantize import quantize

F32 = npt.NDArray[np.float32]

METHODS = ("awq", "gptq", "compressed-tensors", "fp8", "fbgemm_fp8")
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that nibble i of a word belongs to
FLOAT8 = ("F8_E4M3", "F8_E5M2")


def plain_weights(tensors: Mapping[str, RawTensor], config: Mapping[str, Any], fail: Fail) -> dict[str, RawTensor]:
    """All tensors, and an X.weight for every packed X. `config` is config.json, `fail` raises ModelFileError."""
    stated = stated_object(tensors, config, fail)
    if stated is None:
        return dict(tensors)
    method = stated.get("quant_method", "compressed-tensors" if "config_groups" in stated else None)
    if method not in METHODS:
        fail(
            f"config.json: the weights are quantised by {brief(method)}, which Puna does not read; it reads: "
            f"{', '.join(METHODS)}"
        )
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
        bits, version = stated.get("bits", stated.get("w_bit")), stated.get("version")
        fail(f"config.json: AWQ of {brief(bits)} bits, version {brief(version)}, is not supported; 4 bits, gemm is")
    words, zeros, scales = (part_of(tensors, module, part, fail) for part in ("qweight", "qzeros", "scales"))
    inputs, outputs = words.shape[0], words.shape[1] * 8
    groups, size = stated_group(stated, "group_size", inputs, scales, 0, fail)
    expect(fail, scales, scales.shape == (groups, outputs), f"shape {(groups, outputs)}", words)
    expect(fail, zeros, zeros.shape == (groups, outputs // 8), f"shape {(groups, outputs // 8)}", words, scales)
    weight = IntegerWeight(
        shape=(outputs, inputs),
        bits=4,
        codes=lambda: across(whole_numbers(words), 4, AWQ_ORDER),
        zeros=lambda: across(whole_numbers(zeros), 4, AWQ_ORDER),
        scales=lambda: _floats(scales).T,
        group_of=lambda: np.arange(inputs) // size,
    )
    return _whole(module, scales, weight, fail)


def _gptq(tensors: Mapping[str, RawTensor], module: str, stated: Mapping[str, Any], fail: Fail) -> RawTensor:
    """| qweight [in / n, out] | qzeros [groups, out / n] | scales [groups, out] | g_idx [in] |, n values a word.

    The first format stores zeros less one; "gptq_v2" stores them as they are.
    """
    bits, layout = stated.get("bits"), stated.get("checkpoint_format")
    if type(bits) is not int or bits not in (2, 4, 8):
        fail(f"config.json: GPTQ of {brief(bits)} bits is not supported; 2, 4 and 8 are")
    if layout not in (None, "gptq", "gptq_v2"):
        fail(f"config.json: GPTQ's checkpoint_format {brief(layout)} is not supported; 'gptq' and 'gptq_v2' are")
    count = 32 // bits
    words, zeros, scales = (part_of(tensors, module, part, fail) for part in ("qweight", "qzeros", "scales"))
    inputs, outputs, groups = words.shape[0] * count, words.shape[1], scales.shape[0]
    index, size = tensors.get(f"{module}.g_idx"), 0
    if index is None:
        groups, size = stated_group(stated, "group_size", inputs, scales, 0, fail)
    expect(fail, scales, groups > 0 and scales.shape == (groups, outputs), f"a row a group of {outputs}", words)
    expect(fail, zeros, zeros.shape == (groups, outputs // count), f"shape {(groups, outputs // count)}", words, scales)
    if index is not None:
        _check_index(index, inputs, words, fail)
    offset, most = np.uint8(layout != "gptq_v2"), np.uint8((1 << bits) - 1)
    weight = IntegerWeight(
        shape=(outputs, inputs),
        bits=bits,
        codes=lambda: along(whole_numbers(words).T, bits),
        zeros=lambda: across(whole_numbers(zeros), bits) + offset & most,
        scales=lambda: _floats(scales).T,
        group_of=lambda: np.arange(inputs) // size if index is None else groups_of(index, groups, fail),
    )
    return _whole(module, scales, weight, fail)


def _packed(tensors: Mapping[str, RawTensor], module: str, fail: Fail) -> RawTensor:
    """compressed-tensors | weight_packed [out, in / n] | weight_scale [out, groups] | weight_shape | maybe
    weight_zero_point [out / n, groups] and weight_g_idx [in] |: whole numbers around zero, stored with half added."""
    words, scales = (part_of(tensors, module, part, fail) for part in ("weight_packed", "weight_scale"))
    shape = tensors.get(f"{module}.weight_shape")
    two = f"two whole numbers ({' or '.join(WHOLE)}), each at least 1"
    if shape is None:
        fail(f"tensor '{module}.weight_shape' is missing beside '{words.name}'; expected {two}: {REMEDY}", words.name)
    expect(fail, shape, shape.type in WHOLE and shape.shape == (2,), two)
    outputs, inputs = (int(extent) for extent in whole_numbers(shape))
    if outputs < 1 or inputs < 1:
        fail(f"tensor '{shape.name}' holds {outputs} and {inputs}; expected {two}: {REMEDY}", shape.name)
    lengths = {bits: -(-inputs // (32 // bits)) for bits in (4, 8)}
    bits = next((bits for bits, length in lengths.items() if words.shape == (outputs, length)), 0)
    wanted = " or ".join(f"{(outputs, length)} ({bits} bits)" for bits, length in lengths.items())
    expect(fail, words, bits > 0, f"shape {wanted}", shape)
    groups = scales.shape[1]
    expect(fail, scales, scales.shape[0] == outputs and groups > 0, f"{outputs} rows of a scale a group", words)
    zeros, index = (tensors.get(f"{module}.weight_{part}") for part in ("zero_point", "g_idx"))
    if index is None:
        expect(fail, scales, inputs % groups == 0, f"a count of groups that divides rows of {inputs} values", words)
    else:
        _check_index(index, inputs, words, fail)
    if zeros is not None:
        extents = -(-outputs * bits // 32), groups
        expect(fail, zeros, zeros.type == "I32" and zeros.shape == extents, f"I32 of shape {extents}", words, scales)
    half, size = np.uint8(1 << (bits - 1)), inputs // groups
    weight = IntegerWeight(
        shape=(outputs, inputs),
        bits=bits,
        codes=lambda: along(whole_numbers(words), bits)[:, :inputs],
        zeros=lambda: (
            np.full((outputs, groups), half) if zeros is None else across(whole_numbers(zeros).T, bits)[:outputs]
        ),
        scales=lambda: _floats(scales),
        group_of=lambda: np.arange(inputs) // size if index is None else groups_of(index, groups, fail),
    )
    return _whole(module, scales, weight, fail)


def _scaled(tensors: Mapping[str, RawTensor], module: str, stated: Mapping[str, Any], fail: Fail) -> RawTensor:
    """FP8 or int8 with one scale, one a row, or one a block (`weight_scale_inv`, which multiplies all the same)."""
    weight = tensors[f"{module}.weight"]
    names = [f"{module}.weight_scale", f"{module}.weight_scale_inv"]
    scales = next((tensors[name] for name in names if name in tensors), None)
    if scales is None:
        fail(f"tensor '{weight.name}' is {weight.type}; expected '{names[0]}' or '{names[1]}' beside it", weight.name)
    expect(fail, weight, len(weight.shape) == 2 and min(weight.shape) > 0, "a matrix")
    by_kind = f"{' or '.join(FLOATS)}: one, one a row, or one a block"
    blocks = (1, 1) if scales.elements == 1 else (*scales.shape, 1) if len(scales.shape) == 1 else scales.shape
    expect(fail, scales, scales.type in FLOATS and len(blocks) == 2 and min(blocks) > 0, by_kind, weight)
    even = [-(-extent // count) for extent, count in zip(weight.shape, blocks, strict=True)]
    size = stated.get("weight_block_size") if scales.elements > 1 and "inv" in scales.name else even
    if not isinstance(size, list) or len(size) != 2 or not all(type(extent) is int and extent > 0 for extent in size):
        fail(f"config.json: 'weight_block_size' is {brief(size)}; expected two whole numbers from 1 on")
    size = [min(extent, most) for extent, most in zip(size, weight.shape, strict=True)]
    wanted = tuple(-(-weight.shape[axis] // size[axis]) for axis in (0, 1))
    by_block = f"{wanted}: one for each {size[0]} rows and {size[1]} columns ('weight_block_size')"
    expect(fail, scales, blocks == wanted, by_kind if size == even else by_block, weight)
    zeros = tensors.get(f"{module}.weight_zero_point")
    if zeros is not None:
        fits = zeros.elements == scales.elements and zeros.type in ("I8", "U8", *WHOLE)
        expect(fail, zeros, fits, f"a whole number for each of {scales.elements} scales", scales)
    elif weight.type == "I8" and blocks in ((1, 1), (weight.shape[0], 1)):
        return _whole(module, scales, _int8(weight, scales), fail)

    def values() -> F32:
        q = _float8(weight) if weight.type in FLOAT8 else whole_numbers(weight).astype(np.float32)
        if zeros is not None:
            q = q - whole_numbers(zeros).astype(np.float32).reshape(blocks)
        factors = _floats(scales).reshape(blocks)
        if factors.size > 1:
            for axis in (0, 1):
                factors = np.repeat(factors, size[axis], axis)
            factors = factors[: weight.shape[0], : weight.shape[1]]
        made: F32 = q * factors
        return made

    return _made(module, scales, weight.shape, values, fail)


def _int8(weight: RawTensor, scales: RawTensor) -> IntegerWeight:
    """With one scale, or one a row."""
    outputs, inputs = weight.shape
    return IntegerWeight(
        shape=(outputs, inputs),
        bits=8,
        codes=lambda: weight.data.reshape(outputs, inputs) ^ np.uint8(128),
        zeros=lambda: np.full((outputs, 1), 128, np.uint8),
        scales=lambda: np.broadcast_to(_floats(scales).reshape(-1, 1), (outputs, 1)),
        group_of=lambda: np.zeros(inputs, np.int64),
    )


def _whole(module: str, scales: RawTensor, weight: IntegerWeight, fail: Fail) -> RawTensor:
    return _made(module, scales, weight.shape, weight.values, fail, lambda: weight.blocks(f"{module}.weight"))


def _made(
    module: str,
    scales: RawTensor,
    shape: tuple[int, ...],
    values: Callable[[], F32],
    fail: Fail,
    codes: Callable[[], RawTensor | None] = lambda: None,
) -> RawTensor:
    name = f"{module}.weight"
    return MadeTensor(
        name,
        scales.type,
        shape,
        lambda: quantize(checked_values(values, name, scales, fail), scales.type).reshape(-1),
        codes=codes,
    )


def _check_index(index: RawTensor, inputs: int, words: RawTensor, fail: Fail) -> None:
    expect(fail, index, index.shape == (inputs,) and index.type in WHOLE, f"{inputs} whole numbers", words)


def _floats(tensor: RawTensor) -> F32:
    return dequantize(tensor)


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
