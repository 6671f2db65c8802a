"""Folders of safetensors files from strangers: what is read, and one clear error for what is not."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.errors import ModelFileError, ModelNotFoundError, PunaError
from puna.kernels.reference.dequantize import dequantize
from puna.models.safetensors import read_safetensors
from tests.models.folders import part_bytes

CONFIG = {"model_type": "llama", "hidden_size": 8}


def matrix(rows: int) -> np.ndarray[Any, Any]:
    return np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(part_bytes({"a": matrix(2), "b": matrix(3)}))
    return tmp_path


@pytest.fixture
def split(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "one.safetensors").write_bytes(part_bytes({"a": matrix(2)}))
    (tmp_path / "two.safetensors").write_bytes(part_bytes({"b": matrix(3)}))
    weight_map = {"a": "one.safetensors", "b": "two.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


@pytest.mark.parametrize("kind", ["folder", "split"])
def test_tensors_are_those_that_were_written_in_one_part_or_several(kind: str, request: pytest.FixtureRequest) -> None:
    file = read_safetensors(request.getfixturevalue(kind))
    assert set(file.tensors) == {"a", "b"}
    np.testing.assert_array_equal(dequantize(file.tensors["b"]), matrix(3))
    assert (file.architecture, file.container) == ("llama", "safetensors")


def test_the_fingerprint_tells_weights_and_configs_apart(folder: Path) -> None:
    before = read_safetensors(folder).fingerprint()
    assert read_safetensors(folder).fingerprint() == before
    (folder / "config.json").write_text(json.dumps(CONFIG | {"hidden_size": 9}))
    other_config = read_safetensors(folder).fingerprint()
    (folder / "model.safetensors").write_bytes(part_bytes({"a": matrix(2), "b": matrix(3) + 1}))
    assert len({before, other_config, read_safetensors(folder).fingerprint()}) == 3


def test_a_template_comes_from_its_own_file_or_the_tokenizers_config(folder: Path) -> None:
    assert read_safetensors(folder).chat_template is None
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert read_safetensors(folder).chat_template == "D"
    (folder / "chat_template.jinja").write_text("J")
    assert read_safetensors(folder).chat_template == "J"


def edited_header(edit: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = (folder / "model.safetensors").read_bytes()
        size = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + size])
        edit(header)
        text = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])

    return apply


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "expected a JSON object"),
        (lambda folder: (folder / "config.json").write_text("{"), "no valid JSON"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "cannot be read as text"),
        (lambda folder: (folder / "model.safetensors").unlink(), "expected model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"abc"), "no header"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "is said to have"),
        (lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", 3) + b"[1]"), "JSON object"),
        (edited_header(lambda header: header.update(a=7)), "'a' is 7"),
        (edited_header(lambda header: header["a"].update(dtype="Q9")), "dtype 'Q9'"),
        (edited_header(lambda header: header["a"].update(dtype=["F32"])), "dtype"),
        (edited_header(lambda header: header["a"].update(shape=[2, -4])), "whole numbers"),
        (edited_header(lambda header: header["a"].update(shape=[2, 5])), "expected 40"),
        (edited_header(lambda header: header["a"].update(data_offsets=[0, 10**9])), "expected two within"),
        (edited_header(lambda header: header["a"].update(data_offsets=[0, 2**70])), "expected two within"),
    ],
)
def test_what_is_broken_is_said_in_one_line(folder: Path, break_it: Callable[[Path], None], said: str) -> None:
    break_it(folder)
    with pytest.raises(ModelFileError, match=said) as caught:
        read_safetensors(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder: (folder / "two.safetensors").unlink(), "two.safetensors: a part of the model is missing"),
        (
            lambda folder: (folder / "two.safetensors").write_bytes((folder / "one.safetensors").read_bytes()),
            "'a' is also in another part",
        ),
        (
            lambda folder: (folder / "two.safetensors").write_bytes(part_bytes({"c": matrix(1)})),
            "'b' is missing",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}'),
            "not a file name",
        ),
        (lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": []}'), "weight_map"),
    ],
)
def test_a_missing_or_swapped_part_is_named(split: Path, break_it: Callable[[Path], None], said: str) -> None:
    break_it(split)
    with pytest.raises(ModelFileError, match=said):
        read_safetensors(split)


def raw(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def entry(start: int, stop: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": [(stop - start) // 4], "data_offsets": [start, stop]}


def test_tensors_that_share_bytes_are_refused(folder: Path) -> None:
    for second in ((0, 32), (28, 60), (4, 8)):
        header = json.dumps({"a": entry(0, 32), "b": entry(*second)}).encode()
        (folder / "model.safetensors").write_bytes(raw(header, bytes(64)))
        with pytest.raises(ModelFileError, match=r"model\.safetensors: tensor '[ab]' overlaps tensor '[ab]'"):
            read_safetensors(folder)
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [16, 16]}
    header = json.dumps({"a": entry(0, 32), "none": empty, "b": entry(32, 64)}).encode()
    (folder / "model.safetensors").write_bytes(raw(header, bytes(64)))
    assert set(read_safetensors(folder).tensors) == {"a", "none", "b"}


def test_a_tensor_that_stands_twice_in_a_header_is_refused(folder: Path) -> None:
    text = f'{{"a": {json.dumps(entry(0, 32))}, "a": {json.dumps(entry(32, 64))}}}'
    (folder / "model.safetensors").write_bytes(raw(text.encode(), bytes(64)))
    with pytest.raises(ModelFileError, match=r"'a' stands twice"):
        read_safetensors(folder)


def test_block_types_of_gguf_are_no_types_of_safetensors(folder: Path) -> None:
    header = {"a": {"dtype": "Q8_0", "shape": [1, 32], "data_offsets": [0, 32 * 34]}}
    (folder / "model.safetensors").write_bytes(raw(json.dumps(header).encode(), bytes(32 * 34)))
    with pytest.raises(ModelFileError, match=r"dtype 'Q8_0'; Puna reads: F32"):
        read_safetensors(folder)


def test_what_is_no_file_is_no_part(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "pipe.safetensors")  # opening it would wait for a writer
    with pytest.raises(ModelFileError, match=r"files here: none"):
        read_safetensors(folder)
    for name in ("x" * 300, ".."):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(ModelFileError, match=r"missing; model\.safetensors\.index\.json|is not a file name"):
            read_safetensors(folder)


def test_a_folder_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such folder"):
        read_safetensors(tmp_path / "none")


WHOLE = part_bytes({"a": matrix(2), "b": matrix(3)})


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, len(WHOLE) - 1), value=st.integers(0, 255), cut=st.integers(0, len(WHOLE)))
def test_flipped_and_missing_bytes_give_tensors_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int, cut: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "flipped"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    changed = bytearray(WHOLE)
    changed[at] = value
    (folder / "model.safetensors").write_bytes(bytes(changed[: max(cut, at)]))
    try:
        tensors = read_safetensors(folder).tensors
    except PunaError as error:
        said = str(error)
    else:
        said = str(folder)
        assert all(tensor.data.nbytes == tensor.nbytes for tensor in tensors.values())
    assert str(folder) in said
