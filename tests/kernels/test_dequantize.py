"""Decoding is exact: as the formats' own package decodes, and as their definitions say."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from puna.errors import ModelFileError
from puna.kernels.reference.dequantize import dequantize
from puna.kernels.tensor import RawTensor
from puna.models.gguf_format import TENSOR_TYPES
from tests.kernels.steps import raw
from tests.kernels.test_operators import any_bytes

TYPES = sorted(TENSOR_TYPES.values())


@pytest.mark.parametrize("kind", TYPES)
def test_any_bytes_decode_as_the_gguf_package_decodes_them(kind: str) -> None:
    tensor = any_bytes(kind, 40, 512, seed=3)
    number = gguf.GGMLQuantizationType[kind]
    plain: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16}
    data = tensor.data.view(plain.get(kind, np.uint8))
    wanted = gguf.quants.dequantize(data, number).reshape(40, 512)
    np.testing.assert_array_equal(dequantize(tensor), wanted)


def test_a_q4_0_block_is_scale_times_nibble_less_eight() -> None:
    data = np.array([*np.array([0.5], "<f2").tobytes(), *[0xF0] * 16], np.uint8)
    decoded = dequantize(RawTensor("w", "Q4_0", (1, 32), data))
    np.testing.assert_array_equal(decoded[0], [-4.0] * 16 + [3.5] * 16)


def test_a_q4_1_block_is_scale_times_nibble_plus_minimum() -> None:
    data = np.array([*np.array([0.5, -1.0], "<f2").tobytes(), *range(16)], np.uint8)
    decoded = dequantize(RawTensor("w", "Q4_1", (1, 32), data))
    np.testing.assert_array_equal(decoded[0], [i / 2 - 1 for i in range(16)] + [-1.0] * 16)


def test_a_q4_z_block_is_scale_times_nibble_less_zero() -> None:
    data = np.array([*np.array([0.5, 5.0], "<f2").tobytes(), *range(16)], np.uint8)
    decoded = dequantize(RawTensor("w", "Q4_Z", (1, 32), data))
    np.testing.assert_array_equal(decoded[0], [i / 2 - 2.5 for i in range(16)] + [-2.5] * 16)


def test_a_q8_0_block_is_scale_times_signed_byte() -> None:
    data = np.array([*np.array([0.25], "<f2").tobytes(), *range(240, 256), *range(16)], np.uint8)
    decoded = dequantize(RawTensor("w", "Q8_0", (1, 32), data))
    np.testing.assert_array_equal(decoded[0], [i / 4 for i in range(-16, 16)])


def test_a_bf16_is_the_upper_half_of_a_float32() -> None:
    decoded = dequantize(RawTensor("w", "BF16", (2,), np.array([0x80, 0x3F, 0x49, 0xC0], np.uint8)))
    np.testing.assert_array_equal(decoded, [1.0, -3.140625])


def test_a_type_without_a_decoder_is_named_with_those_that_have_one() -> None:
    with pytest.raises(ModelFileError, match=r"'w' has element type I32; Puna decodes BF16, F16, F32, IQ4_NL"):
        dequantize(RawTensor("w", "I32", (2,), np.zeros(8, np.uint8)))


@pytest.mark.parametrize(("kind", "steps"), [("Q8_0", 254), ("Q4_0", 14), ("Q4_1", 30)])
def test_what_is_written_comes_back_within_half_a_step(kind: str, steps: int) -> None:
    values = np.random.default_rng(1).uniform(-1, 1, (8, 64)).astype(np.float32)
    found = dequantize(raw("w", values, kind))
    edge = 1.0 / 8 if kind == "Q4_0" else 0.0  # the value opposite the extreme one is cut off
    assert np.abs(found - values).max() <= max(2.0 / steps, edge) * 1.05
