"""Quantised checkpoints: values by their formats' descriptions, computed one by one, and what is refused."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import pytest

from puna.errors import ModelFileError
from puna.kernels.reference.dequantize import dequantize
from puna.kernels.tensor import RawTensor
from puna.models.packed_weights import plain_weights

RANDOM = np.random.default_rng(5)


def tensor(name: str, type: str, values: Any) -> RawTensor:
    values = np.ascontiguousarray(values)
    return RawTensor(name, type, values.shape, values.view(np.uint8).reshape(-1))


def eight_bit_float(code: int, kind: str) -> float:
    """By the formats' description: sign, four or five bits of exponent, the rest of mantissa."""
    bits = 3 if kind == "F8_E4M3" else 2
    exponent, mantissa = (code & 127) >> bits, code & ((1 << bits) - 1)
    bias = 7 if kind == "F8_E4M3" else 15
    if (code & 127) == 127 or (kind == "F8_E5M2" and exponent == 31):
        return float("nan")
    size = (mantissa / 2**bits + (exponent > 0)) * 2.0 ** (max(exponent, 1) - bias)
    return -size if code & 128 else size


def refuse(message: str, _tensor: str | None = None) -> NoReturn:
    raise ModelFileError(message)


def decoded(stated: dict[str, Any], *tensors: RawTensor) -> np.ndarray[Any, Any]:
    by_name = {each.name: each for each in tensors}
    made = plain_weights(by_name, {"quantization_config": stated}, refuse)["x.weight"]
    assert made.nbytes == made.data.size
    return dequantize(made)


def words(nibbles: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[rows, 8 n] -> [rows, n] int32, the first nibble lowest."""
    parts = nibbles.reshape(len(nibbles), -1, 8).astype(np.uint32) << np.arange(0, 32, 4, dtype=np.uint32)
    return np.bitwise_or.reduce(parts, axis=2).astype(np.uint32).view(np.int32)


def test_awq_nibbles_lie_in_their_own_order() -> None:
    inputs, outputs, group = 64, 16, 32
    q, zeros = RANDOM.integers(0, 16, (inputs, outputs)), RANDOM.integers(0, 16, (2, outputs))
    scales = RANDOM.standard_normal((2, outputs)).astype(np.float16)
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])

    def packed(values: Any) -> Any:
        return words(values.reshape(len(values), -1, 8)[:, :, order].reshape(values.shape))

    found = decoded(
        {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True},
        tensor("x.qweight", "I32", packed(q)),
        tensor("x.qzeros", "I32", packed(zeros)),
        tensor("x.scales", "F16", scales),
    )
    for row in range(outputs):
        for column in range(inputs):
            at = column // group, row
            assert found[row, column] == np.float16(float(scales[at]) * (int(q[column, row]) - int(zeros[at])))


@pytest.mark.parametrize(("version", "offset"), [("gptq", 1), ("gptq_v2", 0)])
def test_gptq_zeros_are_one_off_in_the_first_format_and_groups_follow_the_index(version: str, offset: int) -> None:
    inputs, outputs = 64, 16
    q, zeros = RANDOM.integers(0, 16, (inputs, outputs)), RANDOM.integers(offset, 16, (2, outputs))
    scales = RANDOM.standard_normal((2, outputs)).astype(np.float16)
    index = RANDOM.integers(0, 2, inputs).astype(np.int32)
    found = decoded(
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": version, "desc_act": True},
        tensor("x.qweight", "I32", words(q.T).T),
        tensor("x.qzeros", "I32", words(zeros - offset)),
        tensor("x.scales", "F16", scales),
        tensor("x.g_idx", "I32", index),
    )
    for row in range(outputs):
        for column in range(inputs):
            at = index[column], row
            assert found[row, column] == np.float16(float(scales[at]) * (int(q[column, row]) - int(zeros[at])))


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2"])
def test_every_code_of_eight_bit_floats_is_what_it_stands_for(kind: str) -> None:
    codes = np.arange(256, dtype=np.uint8)
    wanted = np.array([eight_bit_float(code, kind) for code in range(256)], np.float32)
    codes, wanted = codes[np.isfinite(wanted)].reshape(2, -1), wanted[np.isfinite(wanted)].reshape(2, -1)
    one = tensor("x.weight_scale", "F32", np.ones(1, np.float32))
    assert np.array_equal(decoded({"quant_method": "fp8"}, tensor("x.weight", kind, codes), one), wanted)


def test_blocks_of_eight_bit_floats_have_a_scale_each_and_edges_are_cut() -> None:
    codes = RANDOM.integers(0, 0x7E, (5, 7)).astype(np.uint8)
    scales = RANDOM.standard_normal((2, 2)).astype(np.float32)
    found = decoded(
        {"quant_method": "fp8", "weight_block_size": [4, 4]},
        tensor("x.weight", "F8_E4M3", codes),
        tensor("x.weight_scale_inv", "F32", scales),
    )
    for row in range(5):
        for column in range(7):
            assert (
                found[row, column]
                == np.float32(eight_bit_float(int(codes[row, column]), "F8_E4M3")) * scales[row // 4, column // 4]
            )


@pytest.mark.parametrize(
    ("stated", "parts", "message"),
    [
        ({"quant_method": "bitsandbytes"}, {}, r"quantised by 'bitsandbytes', which Puna does not read; it reads: awq"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, {}, r"version 'gemv', is not supported"),
        ({"quant_method": "gptq", "bits": 3}, {}, r"GPTQ of 3 bits is not supported; 2, 4 and 8 are"),
        ({"quant_method": "gptq", "bits": 4}, {"x.qzeros": None}, r"'x\.qzeros' is missing"),
        ({"quant_method": "gptq", "bits": 4}, {"x.scales": (3, 16)}, r"'x\.scales' is F16 of shape \(3, 16\)"),
    ],
)
def test_what_is_not_read_is_refused_by_name(stated: dict[str, Any], parts: dict[str, Any], message: str) -> None:
    shapes: dict[str, Any] = {"x.qweight": (8, 16), "x.qzeros": (2, 2), "x.scales": (2, 16)} | parts
    tensors = [
        tensor(name, "F16" if "scales" in name else "I32", np.zeros(shape, "f2" if "scales" in name else "i4"))
        for name, shape in shapes.items()
        if shape is not None
    ]
    with pytest.raises(ModelFileError, match=message):
        decoded(stated, *tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 4.0}, r"GPTQ of 4\.0 bits is not supported"),
        ({"checkpoint_format": "marlin"}, r"checkpoint_format 'marlin' is not supported; 'gptq' and 'gptq_v2' are"),
        ({"x.g_idx": ("F32", np.zeros(64, "f4"))}, r"'x\.g_idx' is F32 of shape \(64,\); expected 64 whole numbers"),
        ({"x.qweight": ("I32", np.zeros((0, 16), "i4"))}, r"'x\.qweight' is I32 of shape \(0, 16\); expected a matrix"),
    ],
)
def test_gptq_that_contradicts_itself_is_refused_before_it_is_decoded(change: dict[str, Any], message: str) -> None:
    parts: dict[str, Any] = {
        "x.qweight": ("I32", np.zeros((8, 16), "i4")),
        "x.qzeros": ("I32", np.zeros((2, 2), "i4")),
        "x.scales": ("F16", np.ones((2, 16), "f2")),
        "x.g_idx": ("I32", np.arange(64, dtype="i4") // 32),
    }
    stated = {"quant_method": "gptq", "bits": 4} | {key: value for key, value in change.items() if "." not in key}
    parts |= {key: value for key, value in change.items() if "." in key}
    by_name = {name: tensor(name, *part) for name, part in parts.items()}
    with pytest.raises(ModelFileError, match=message):
        plain_weights(by_name, {"quantization_config": stated}, refuse)


@pytest.mark.parametrize(
    ("kind", "extents"),
    [
        *(("F32", [4.0, 8.0]), ("I64", [4]), ("I64", [4, 8, 1]), ("I64", []), ("I64", [[4, 8]])),
        *(("I64", [-4, 8]), ("I64", [4, 0]), ("I16", [4, 8])),
    ],
)
def test_a_stated_shape_that_is_none_is_refused(kind: str, extents: list[Any]) -> None:
    shape = np.array(extents, {"F32": "f4", "I64": "i8", "I16": "i2"}[kind])
    parts = [
        tensor("x.weight_packed", "I32", np.zeros((4, 1), "i4")),
        tensor("x.weight_scale", "F32", np.ones((4, 1), "f4")),
        tensor("x.weight_shape", kind, shape),
    ]
    with pytest.raises(ModelFileError, match=r"weight_shape' (is|holds) .*expected two whole numbers"):
        decoded({"quant_method": "compressed-tensors"}, *parts)
