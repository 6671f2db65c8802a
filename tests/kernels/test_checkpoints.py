"""Quantised checkpoints run in the bits that they hold: what they take, and how far they are from their decoded values.

Folders are those that the formats' packages wrote (tests/models/data/packed). "Values" are the same weights decoded to
16 bits, as NumPy runs them and as compute="float32" does.
"""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from puna.kernels import program as ops
from puna.kernels.batch import KVConfig
from puna.kernels.cpu import NativeInterpreter
from puna.kernels.reference.dequantize import dequantize
from puna.kernels.reference.interpreter import ReferenceInterpreter
from puna.kernels.tensor import RawTensor, multiplied, packed_bits
from puna.models.load import LoadedModel, load_model
from tests.kernels.steps import F32, around, rows, step

FILES = Path(__file__).parents[1] / "models" / "data" / "packed"
KINDS = {
    "autoawq": "Q4_Z",
    "auto-round": "Q4_Z",
    "auto-gptq-2": "Q4_Z",
    "gptqmodel-v1-4": "Q4_Z",
    "llmcompressor-int4": "Q4_Z",
    "symmetric": "Q4_0",
    "llmcompressor-int8": "Q8_0",
    "auto-gptq-4": None,
}
KV = KVConfig(6, 16, "f32")
IDS = np.random.default_rng(6).integers(0, 64, 60).tolist()
BOUND = 0.1  # of the largest logit; measured: 0.072, nearly all of it from activations in 8 bits, of 64 random channels


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param != "symmetric":
        return FILES / str(request.param)
    return without_zeros(FILES / "llmcompressor-int4", tmp_path_factory.mktemp("int4") / "symmetric")


def without_zeros(source: Path, folder: Path) -> Path:
    """A copy whose header does not name the zero points, so that each is the middle."""
    shutil.copytree(source, folder)
    file = folder / "model.safetensors"
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    text = json.dumps({name: entry for name, entry in header.items() if not name.endswith("zero_point")}).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    return folder


def as_values(model: LoadedModel) -> dict[str, RawTensor]:
    return {name: RawTensor(name, each.type, each.shape, each.data) for name, each in model.weights.items()}


def matrices(model: LoadedModel) -> list[RawTensor]:
    used = {op.weight for op in model.program.body + model.program.head if isinstance(op, ops.Linear)}
    return [model.weights[name] for name in sorted(used)]


def logits(native: NativeInterpreter) -> F32:
    found = native.step(step([(IDS, 0, range(1, 5))], rows(range(len(IDS))))).logits
    assert found is not None
    return found


def test_matrices_take_the_bits_of_their_codes(folder: Path, isa: str) -> None:
    model, kind = load_model(folder), KINDS[folder.name]
    kinds = [multiplied(matrix, "int8").type for matrix in matrices(model)]
    assert kinds.count(str(kind)) == (7 if kind else 0)
    native = NativeInterpreter(model.program, model.weights, KV, isa=isa, threads=1)
    bits = [32 if isa == "portable" and kind == "F16" else packed_bits(kind) for kind in kinds]
    vectors = 4 * sum(weight.elements for weight in model.weights.values() if len(weight.shape) == 1)
    packed = sum(m.elements * each / 8 for m, each in zip(matrices(model), bits, strict=True))
    assert native.packed_bytes == vectors + packed


def test_logits_are_near_those_of_the_decoded_values(folder: Path, isa: str) -> None:
    model = load_model(folder)
    codes = NativeInterpreter(model.program, model.weights, KV, isa=isa, threads=1)
    values = NativeInterpreter(model.program, as_values(model), KV, isa=isa, threads=1)
    found, wanted = logits(codes), logits(values)
    assert np.abs(found - wanted).max() <= BOUND * np.abs(wanted).max()
    if KINDS[folder.name] is None:
        assert (codes.fingerprint, found.tobytes()) == (values.fingerprint, wanted.tobytes())
    else:
        assert codes.fingerprint != values.fingerprint


def test_float32_multiplies_the_values_that_the_package_decodes(folder: Path, isa: str) -> None:
    model = load_model(folder)
    found, wanted = (
        logits(NativeInterpreter(model.program, weights, KV, isa=isa, threads=1, compute="float32"))
        for weights in (model.weights, as_values(model))
    )
    np.testing.assert_array_equal(found, wanted)


def test_a_product_is_that_of_the_whole_numbers_and_their_scales(folder: Path, isa: str) -> None:
    weight = load_model(folder).weights["layers.0.feed_forward.down"]
    codes = multiplied(weight, "int8")
    x = np.random.default_rng(7).standard_normal((40, 96), np.float32)
    case = around([ops.Linear("x", "y", "w")], {"x": x}, {"w": weight}, widths={"y": 64}, out="y")
    batch = step([(range(40), 0, range(1, 4))])
    native = NativeInterpreter(case.program, case.weights, KV, isa=isa, threads=1)
    exact = case.weights | {"w": codes}
    found, wanted = (
        native.step(batch),
        ReferenceInterpreter(case.program, exact, KV, rounding=native.rounding).step(batch),
    )
    assert found.logits is not None
    assert wanted.logits is not None
    terms = (np.abs(x) @ np.abs(dequantize(codes)).T).max()
    assert np.abs(found.logits - wanted.logits).max() <= 1e-6 * terms


def test_a_model_runs_of_which_some_matrices_have_no_codes(isa: str) -> None:
    """Among those that read one input, and as one factor of a gate."""
    model = load_model(FILES / "autoawq")
    plain = as_values(model)
    mixed = dict(model.weights) | {name: plain[name] for name in plain if name.endswith(("key", "up"))}
    assert [multiplied(mixed[name], "int8").type for name in mixed if name.endswith(("key", "up"))] == ["F16", "F16"]
    found, codes, wanted = (
        logits(NativeInterpreter(model.program, weights, KV, isa=isa, threads=1))
        for weights in (mixed, model.weights, plain)
    )
    assert 0 < np.abs(found - wanted).max() <= BOUND * np.abs(wanted).max()
    assert not np.array_equal(found, codes)
