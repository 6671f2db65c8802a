"""Quantised checkpoints that contradict themselves: each way gives one error that names the file, the tensor, what it
is and what it has to be. The folders are those that the packages wrote, changed in one place."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.errors import ModelFileError
from puna.kernels.reference.dequantize import dequantize
from puna.models.load import load_model

PACKED = Path(__file__).parent / "data" / "packed"
FOLDERS = sorted(path.parent.name for path in PACKED.glob("*/decoded.json"))
DTYPES = {"I32": "<i4", "I64": "<i8", "F16": "<f2", "F32": "<f4", "BF16": "<u2", "I8": "i1", "F8_E4M3": "u1"}

Parts = dict[str, tuple[str, np.ndarray[Any, Any]]]


def copied(name: str, to: Path, *, config: dict[str, Any] | None = None, change: Callable[[Parts], None]) -> Path:
    """The folder with entries of its quantization_config replaced and its tensors changed by `change`."""
    folder = Path(shutil.copytree(PACKED / name, to / name))
    stated = json.loads((folder / "config.json").read_text())
    stated["quantization_config"] |= config or {}
    (folder / "config.json").write_text(json.dumps(stated))
    file = next(folder.glob("*.safetensors"))
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    header.pop("__metadata__", None)
    parts: Parts = {}
    for tensor, entry in header.items():
        start, stop = (8 + size + offset for offset in entry["data_offsets"])
        values = np.frombuffer(content[start:stop], DTYPES[entry["dtype"]]).reshape(entry["shape"]).copy()
        parts[tensor] = entry["dtype"], values
    change(parts)
    header, data = {}, b""
    for tensor, (kind, values) in parts.items():
        offsets = [len(data), len(data) + values.nbytes]
        header[tensor] = {"dtype": kind, "shape": list(values.shape), "data_offsets": offsets}
        data += values.tobytes()
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return folder


def decode_all(folder: Path) -> None:
    for tensor in load_model(folder).weights.values():
        assert dequantize(tensor).shape == tensor.shape


def problem(folder: Path) -> str | None:
    try:
        decode_all(folder)
    except ModelFileError as error:
        return str(error)
    return None


def unchanged(_parts: Parts) -> None:
    pass


def part(parts: Parts, ending: str) -> str:
    return next(name for name in parts if "q_proj" in name and name.endswith(ending))


def without(ending: str) -> Callable[[Parts], None]:
    return lambda parts: void(parts.pop(part(parts, ending)))


def void(_value: Any) -> None:
    pass


def put(
    ending: str, make: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], kind: str = ""
) -> Callable[..., None]:
    def change(parts: Parts) -> None:
        name = part(parts, ending)
        old, values = parts[name]
        parts[name] = kind or old, make(values)

    return change


def with_one(value: float) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    def make(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        changed = values.copy()
        changed.reshape(-1)[-1] = value
        return changed

    return make


WHERE = r"\w\S*\.safetensors: tensor '[^']*"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("autoawq", without(".scales"), WHERE + r"scales' is missing beside '.*; expected a matrix of F16 or BF16"),
        ("autoawq", without(".qzeros"), WHERE + r"qzeros' is missing beside '.*; expected a matrix of I32"),
        ("autoawq", put(".scales", lambda v: v[:, :-1]), WHERE + r"scales' is F16 of shape \(2, 63\); expected shape"),
        (
            "autoawq",
            put(".scales", lambda v: v[:1]),
            WHERE + r"scales' .*expected 2 groups, for config\.json cuts rows",
        ),
        (
            "autoawq",
            put(".qzeros", lambda v: v.T.copy()),
            WHERE + r"qzeros' is I32 of shape .*; expected shape \(2, 8\)",
        ),
        ("autoawq", put(".qzeros", lambda v: v.astype("<i8"), "I64"), WHERE + r"qzeros' is I64 .*a matrix of I32"),
        ("autoawq", put(".scales", with_one(np.nan)), WHERE + r"scales' has nan at \(1, 63\); expected numbers"),
        ("autoawq", put(".scales", with_one(np.inf)), WHERE + r"scales' has inf at \(1, 63\); expected numbers"),
        (
            "autoawq",
            put(".scales", lambda v: np.full_like(v, 60000)),
            WHERE + r"weight' decodes to .* expected at most 65504",
        ),
        ("auto-gptq-4", without(".scales"), WHERE + r"scales' is missing beside"),
        ("auto-gptq-4", put(".scales", lambda v: v[0]), WHERE + r"scales' is F16 of shape \(64,\); expected a matrix"),
        (
            "auto-gptq-4",
            put(".scales", lambda v: v[:0]),
            WHERE + r"scales' is F16 of shape \(0, 64\); expected a matrix",
        ),
        ("auto-gptq-4", put(".g_idx", lambda v: v[:-1]), WHERE + r"g_idx' is I32 of shape \(63,\); expected 64 whole"),
        ("auto-gptq-4", put(".g_idx", with_one(2)), WHERE + r"g_idx' names group 2; expected 0 to 1"),
        ("auto-gptq-4", put(".g_idx", with_one(-1)), WHERE + r"g_idx' names group -1; expected 0 to 1"),
        ("auto-gptq-4", put(".g_idx", with_one(-(2**31))), WHERE + r"g_idx' names group -2147483648; expected 0 to 1"),
        ("auto-gptq-4", put(".scales", with_one(-np.inf)), WHERE + r"scales' has -inf at \(1, 63\); expected numbers"),
        ("llmcompressor-int4", without("_scale"), WHERE + r"weight_scale' is missing beside"),
        ("llmcompressor-int4", without("_shape"), WHERE + r"weight_shape' is missing beside '.*; expected two whole"),
        (
            "llmcompressor-int4",
            put("_shape", lambda v: v * 0),
            WHERE + r"weight_shape' holds 0 and 0; expected two whole",
        ),
        ("llmcompressor-int4", put("_shape", with_one(2**62)), WHERE + r"weight_packed' is I32 .*; expected shape"),
        ("llmcompressor-int4", put("_scale", lambda v: v[:-1]), WHERE + r"weight_scale' is .*; expected 64 rows"),
        ("llmcompressor-int4", put("_scale", lambda v: v[:, :0]), WHERE + r"weight_scale' is .*; expected a matrix"),
        (
            "llmcompressor-int4",
            put("_scale", lambda v: np.tile(v[:, :1], 3)),
            WHERE + r"weight_scale' .*that divides rows",
        ),
        (
            "llmcompressor-int4",
            put("_zero_point", lambda v: v[:-1]),
            WHERE + r"zero_point' is I32 of shape .*; expected I32",
        ),
        ("llmcompressor-int8", without("_scale"), WHERE + r"weight' is I8; expected '.*weight_scale' or '.*_inv'"),
        (
            "llmcompressor-int8",
            put("_scale", lambda v: v[:-1]),
            WHERE + r"weight_scale' is .*one a row, or one a block",
        ),
        ("llmcompressor-fp8", put("_scale", lambda v: v[:0]), WHERE + r"weight_scale' is .*one a row, or one a block"),
        ("llmcompressor-fp8", put(".q_proj.weight", with_one(0x7F)), WHERE + r"weight' decodes to nan in"),
        (
            "transformers-fp8",
            put("_inv", lambda v: v.astype("<i4"), "I32"),
            WHERE + r"scale_inv' is I32 .*; expected F16 or",
        ),
        (
            "transformers-fp8",
            put("_inv", lambda v: v[:1]),
            WHERE + r"scale_inv' is .*expected \(2, 2\): one for each 32 rows and 32",
        ),
        (
            "transformers-fp8",
            put("_inv", with_one(np.nan)),
            WHERE + r"scale_inv' has nan at \(1, 1\); expected numbers",
        ),
    ],
)
def test_parts_that_contradict_each_other_are_named_with_what_they_have_to_be(
    name: str, change: Callable[[Parts], None], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match=message):
        decode_all(copied(name, tmp_path, change=change))


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("autoawq", {"group_size": 0}, r"config\.json: 'group_size' is 0; expected a whole number from 1 on, or -1"),
        ("autoawq", {"group_size": "32"}, r"config\.json: 'group_size' is '32'; expected a whole number"),
        ("autoawq", {"group_size": True}, r"config\.json: 'group_size' is True; expected a whole number"),
        ("autoawq", {"group_size": 24}, r"scales' .*; expected 4 groups, for config\.json cuts rows of 96 values into"),
        ("autoawq", {"group_size": -1}, r"scales' .*; expected 1 groups, for config\.json"),
        ("autoawq", {"bits": [4]}, r"config\.json: AWQ of \[4\] bits"),
        ("autoawq", {"version": {}}, r"config\.json: AWQ of 4 bits, version \{\}, is not supported"),
        ("autoawq", {"quant_method": ["awq"]}, r"config\.json: the weights are quantised by \['awq'\], which Puna"),
        ("auto-gptq-4", {"bits": True}, r"config\.json: GPTQ of True bits is not supported; 2, 4 and 8 are"),
        ("auto-gptq-4", {"bits": 8}, r"qzeros' is I32 of shape .*; expected shape"),
        ("auto-gptq-4", {"checkpoint_format": 2}, r"config\.json: GPTQ's checkpoint_format 2 is not supported"),
        ("transformers-fp8", {"weight_block_size": None}, r"'weight_block_size' is None; expected two whole numbers"),
        ("transformers-fp8", {"weight_block_size": [0, 32]}, r"'weight_block_size' is \[0, 32\]; expected two whole"),
        ("transformers-fp8", {"weight_block_size": [32.0, 32]}, r"'weight_block_size' is \[32\.0, 32\]; expected two"),
        (
            "transformers-fp8",
            {"weight_block_size": [10**15, 32]},
            r"scale_inv' is .*expected \(1, 3\): one for each 64 rows and 32",
        ),
    ],
)
def test_a_config_that_contradicts_the_parts_is_named(
    name: str, config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match=message):
        decode_all(copied(name, tmp_path, config=config, change=unchanged))


@pytest.mark.parametrize("stated", [[], "awq", 4, True, None, {}])
def test_packed_weights_without_a_description_are_refused(stated: Any, tmp_path: Path) -> None:
    folder = copied("autoawq", tmp_path, change=unchanged)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": stated}))
    with pytest.raises(ModelFileError, match=r"'quantization_config' is .*; expected an object|is packed, and config"):
        load_model(folder)


@pytest.mark.parametrize("name", FOLDERS)
def test_garbled_parts_give_values_or_one_error_that_names_the_file(name: str, tmp_path: Path) -> None:
    random = np.random.default_rng(20)
    refused = 0
    for attempt in range(30):

        def garble(parts: Parts) -> None:
            tensor = list(parts)[random.integers(len(parts))]
            kind, values = parts[tensor]
            match random.integers(5):
                case 0:
                    parts.pop(tensor)
                case 1:
                    parts[tensor] = kind, values[..., : values.shape[-1] // 2]
                case 2:
                    parts[tensor] = kind, values.reshape(-1)
                case 3:
                    other = list(DTYPES)[random.integers(len(DTYPES))]
                    parts[tensor] = other, np.zeros(values.shape, DTYPES[other])
                case _:
                    garbage = np.frombuffer(random.bytes(values.nbytes), values.dtype)
                    parts[tensor] = kind, garbage.reshape(values.shape)

        folder = copied(name, tmp_path / str(attempt), change=garble)
        message = problem(folder)
        assert message is None or str(folder) in message
        assert message is None or re.search(r"expected|does not say|is missing", message)
        refused += message is not None
    assert refused > 5
