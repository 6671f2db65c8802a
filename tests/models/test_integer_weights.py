"""Weights of whole numbers as blocks of codes: exact where a type of blocks can say them, and none where it cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from puna.errors import ModelFileError
from puna.kernels.reference.dequantize import dequantize
from puna.kernels.tensor import MadeTensor, RawTensor
from puna.models.integer_weights import IntegerWeight
from puna.models.load import load_model
from puna.models.model_file import ModelFile
from puna.models.packed_weights import plain_weights
from puna.models.quantize import quantize
from puna.models.safetensors import read_safetensors
from puna.models.weights import Picked, Rows, Source, Stacked, Turned, find

FILES = Path(__file__).parent / "data" / "packed"
TYPES = {  # of the blocks of every matrix in files of other packages; None: they stay values
    "autoawq": "Q4_Z",
    "auto-round": "Q4_Z",
    "auto-gptq-2": "Q4_Z",
    "auto-gptq-4": None,  # columns in the order of activation
    "gptqmodel-v1-4": "Q4_Z",
    "gptqmodel-v2-8": None,  # eight bits with zeros
    "llmcompressor-int4": "Q4_Z",
    "llmcompressor-int8": "Q8_0",
    "llmcompressor-fp8": None,
    "transformers-fp8": None,
}


@pytest.mark.parametrize("folder", TYPES)
def test_codes_of_real_files_are_the_packages_values_before_these_are_rounded(folder: str) -> None:
    tensors = read_safetensors(FILES / folder).tensors
    made = [tensor for tensor in tensors.values() if isinstance(tensor, MadeTensor)]
    assert len(made) == 7
    for tensor in made:
        codes = tensor.as_codes()
        assert (codes.type if codes else None) == TYPES[folder]
        if codes:
            assert codes.nbytes == codes.data.size
            assert np.array_equal(quantize(dequantize(codes), tensor.type).reshape(-1), tensor.data)


def weight(bits: int = 4, group: int = 32, inputs: int = 96, outputs: int = 5, **changes: Any) -> IntegerWeight:
    """Random, with a zero a group; `centre`: all of them in the middle."""
    random = np.random.default_rng(bits + group)
    codes = random.integers(0, 1 << bits, (outputs, inputs), np.uint8)
    zeros = random.integers(0, 1 << bits, (outputs, -(-inputs // group)), np.uint8)
    if changes.pop("centre", False):
        zeros[:] = 1 << (bits - 1)
    scales = random.uniform(-0.1, 0.1, zeros.shape).astype(np.float16).astype(np.float32)
    scales = changes.pop("scales", lambda values: values)(scales)
    made = IntegerWeight((outputs, inputs), bits, *_given(codes, zeros, scales, np.arange(inputs) // group))
    return replace(made, **changes)


def _given(*arrays: Any) -> list[Callable[[], Any]]:
    return [lambda values=values: values for values in arrays]


@pytest.mark.parametrize(
    ("made", "type"),
    [
        (weight(centre=True), "Q4_0"),
        (weight(), "Q4_Z"),
        (weight(group=96), "Q4_Z"),
        (weight(bits=2, centre=True), "Q4_Z"),
        (weight(bits=8, centre=True), "Q8_0"),
        (weight(scales=lambda values: values * np.float32(2**-13), centre=True), None),  # float16 has fewer bits there
        (weight(scales=lambda values: np.exp2(np.round(100 * values)) / 4096), "Q4_Z"),  # subnormal, exactly
        (weight(scales=lambda values: values * np.float32(1e6)), None),
        (weight(scales=lambda values: values * np.float32(np.inf)), None),
        (weight(scales=lambda values: values + np.float32(1e-6)), None),
        (weight(bits=8), None),
        (weight(group=16), None),
        (weight(group=48), None),
        (weight(inputs=80, group=80), None),
        (weight(group_of=lambda: np.arange(96) % 3), None),
        (weight(group_of=lambda: np.repeat([2, 0, 1], 32)), "Q4_Z"),  # an order that keeps blocks together
    ],
)
def test_blocks_mean_the_whole_numbers_times_the_scales_or_there_are_none(
    made: IntegerWeight, type: str | None
) -> None:
    blocks = made.blocks("w")
    assert (blocks.type if blocks else None) == type
    if blocks:
        group = made.group_of()
        exact = (made.codes().astype(float) - made.zeros().astype(float)[:, group]) * made.scales()[:, group]
        assert np.array_equal(dequantize(blocks), exact)
        assert np.array_equal(made.values(), exact)


def test_a_group_that_there_is_not_is_an_error_before_anything_is_packed() -> None:
    def refuse(message: str, _: str | None = None, /) -> NoReturn:
        raise ModelFileError(message)

    def part(name: str, type: str, values: Any) -> RawTensor:
        return RawTensor(name, type, values.shape, values.view(np.uint8).reshape(-1))

    parts = [
        part("x.qweight", "I32", np.zeros((8, 16), "i4")),
        part("x.qzeros", "I32", np.zeros((2, 2), "i4")),
        part("x.scales", "F16", np.ones((2, 16), "f2")),
        part("x.g_idx", "I32", np.arange(64, dtype="i4") // 16),
    ]
    stated = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    made = plain_weights({each.name: each for each in parts}, stated, refuse)["x.weight"]
    for use in (made.as_codes, lambda: made.data):
        with pytest.raises(ModelFileError, match=r"tensor 'x\.g_idx' names group 2; expected 0 to 1"):
            use()


GATE, UP = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up"))  # 96 rows of 64


@pytest.mark.parametrize(
    ("source", "rows"),
    [
        (Rows(GATE, 30, 67), slice(30, 67)),
        (Picked(GATE, tuple(range(95, -1, -1))), slice(None, None, -1)),
        (Rows(Picked(GATE, (*range(50, 96), *range(50))), 40, 60), [*range(90, 96), *range(14)]),
    ],
)
def test_codes_follow_where_rows_are_cut_or_put_in_another_order(source: Source, rows: Any) -> None:
    file: ModelFile = read_safetensors(FILES / "autoawq")
    found = find(file, source)
    codes, whole = found.as_codes(), file.tensors[GATE].as_codes()
    assert codes is not None
    assert whole is not None
    assert codes.shape == found.shape
    assert codes.type == "Q4_Z"
    assert np.array_equal(dequantize(codes), dequantize(whole)[rows])
    assert np.array_equal(dequantize(found), dequantize(file.tensors[GATE])[rows])


def test_a_stack_has_codes_where_all_of_its_matrices_have_the_same_kind() -> None:
    file = read_safetensors(FILES / "autoawq")
    stack = find(file, Stacked((GATE, UP)))
    codes = stack.renamed("experts").as_codes()
    assert codes is not None
    assert (codes.name, codes.type, codes.shape) == ("experts", "Q4_Z", (2, 96, 64))
    for number, part in enumerate(codes.matrices()):
        single = file.tensors[(GATE, UP)[number]].as_codes()
        assert single is not None
        assert np.array_equal(part.data, single.data)
    plain = file.tensors[UP]
    values = RawTensor(UP, plain.type, plain.shape, plain.data)
    mixed = replace(file, tensors={**file.tensors, UP: values})
    assert find(mixed, Stacked((GATE, UP))).as_codes() is None


def test_a_matrix_that_is_turned_stays_values() -> None:
    file = read_safetensors(FILES / "autoawq")
    turned = find(file, Turned(GATE))
    assert turned.as_codes() is None
    assert np.array_equal(dequantize(turned), dequantize(file.tensors[GATE]).T)


def test_a_folder_opens_with_values_and_codes_under_the_programs_names() -> None:
    weights = load_model(FILES / "autoawq").weights
    up = weights["layers.0.feed_forward.up"]
    codes = up.as_codes()
    assert codes is not None
    assert (up.type, codes.type, codes.name) == ("F16", "Q4_Z", up.name)
    assert weights["embedding"].as_codes() is None
