"""Reading GGUF: what is written comes back, and whatever is wrong with a file is said in one line."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puna.errors import ModelFileError, ModelNotFoundError
from puna.kernels.tensor import BLOCK_SIZES
from puna.models import gguf_format as gguf
from puna.models.facts import Facts
from puna.models.gguf import parse_gguf, read_gguf
from puna.models.gguf_write import TensorToWrite, Typed, encode, gguf_bytes
from tests.tiny import write_tiny_llama

TYPES = ("BF16", "F16", "F32", "Q4_0", "Q4_1", "Q8_0")  # that can be written
METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "a.int": 7,
    "a.negative": -7,
    "a.large": 2**40,
    "a.float": 0.5,
    "a.double": Typed(gguf.FLOAT64, 0.1),
    "a.byte": Typed(gguf.UINT8, 200),
    "a.flag": True,
    "a.text": "naïve 🦙",
    "a.strings": ["x", "", "déjà"],
    "a.none": [],
    "a.numbers": np.arange(5, dtype=np.int32),
    "a.flags": np.array([True, False]),
    "a.nested": [["a", "b"], ["c"]],
}


def small_file(**changes: Any) -> bytes:
    values = np.linspace(-1, 1, 4 * 64, dtype=np.float32).reshape(4, 64)
    return gguf_bytes({**METADATA, **changes}, [encode(f"w.{kind}", values, kind) for kind in TYPES])


def test_what_was_written_comes_back() -> None:
    file = parse_gguf(small_file(), "small.gguf")
    assert file.version == 3
    assert file.metadata["a.double"] == 0.1
    for key in ("a.int", "a.negative", "a.large", "a.float", "a.flag", "a.text", "a.strings", "a.none", "a.nested"):
        assert file.metadata[key] == METADATA[key], key
    assert file.metadata["a.byte"] == 200
    assert np.array_equal(file.metadata["a.numbers"], np.arange(5))
    assert file.metadata["a.flags"].tolist() == [True, False]
    for kind in TYPES:
        tensor = file.tensors[f"w.{kind}"]
        block, size = BLOCK_SIZES[kind]
        assert (tensor.type, tensor.shape, tensor.data.size) == (kind, (4, 64), 4 * 64 // block * size)


def test_tensor_views_cannot_be_written_to() -> None:
    tensor = parse_gguf(small_file(), "small.gguf").tensors["w.F32"]
    with pytest.raises(ValueError, match="read-only"):
        tensor.data[0] = 1


@pytest.mark.parametrize("kind", TYPES)
def test_encoded_values_stay_close_to_the_originals(kind: str) -> None:
    values = np.random.default_rng(1).standard_normal((8, 64), np.float32)
    decoded = decode(encode("w", values, kind))
    step = {"F32": 0, "F16": 2**-10, "BF16": 2**-8, "Q8_0": 1 / 127, "Q4_0": 1 / 7, "Q4_1": 1 / 14}[kind]
    allowed = step * np.abs(values).reshape(-1, 32).max(axis=1, keepdims=True).repeat(32, axis=1).reshape(values.shape)
    assert (np.abs(decoded - values) <= allowed).all()


def test_bf16_rounds_to_the_nearest_and_ties_to_even() -> None:
    values = np.array([[1.0, 1.00390625, 1.01171875, -2.5, np.inf, 3.3895314e38]], np.float32)
    bits = np.frombuffer(encode("w", values, "BF16").data, "<u2")
    assert bits.tolist() == [0x3F80, 0x3F80, 0x3F82, 0xC020, 0x7F80, 0x7F7F]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_a_row_that_is_no_multiple_of_the_block_cannot_be_encoded(kind: str) -> None:
    with pytest.raises(ValueError, match="33"):
        encode("w", np.zeros((2, 33), np.float32), kind)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "GGUF"),
        (b"PK\x03\x04" + b"\0" * 60, "GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "version 4"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "metadata entries"),
        (b"GGUF" + struct.pack("<I", 3), "end of the file"),
    ],
)
def test_a_file_that_is_something_else_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(ModelFileError, match=said) as caught:
        parse_gguf(content, "odd.gguf")
    assert "odd.gguf: at byte" in str(caught.value)
    assert "expected" in str(caught.value)


def entry(key: bytes, kind: int, payload: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + payload


def header(*entries: bytes, tensors: tuple[bytes, ...] = (), rest: bytes = b"\0" * 256) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries + tensors) + rest


def tensor_info(name: bytes, extents: tuple[int, ...], kind: int, offset: int) -> bytes:
    layout = struct.pack(f"<I{len(extents)}QIQ", len(extents), *extents, kind, offset)
    return struct.pack("<Q", len(name)) + name + layout


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (header(entry(b"k", 4, b"\1\0\0\0"), entry(b"k", 4, b"\1\0\0\0")), "second metadata entry 'k'"),
        (header(entry(b"k", 13, b"\0" * 8)), "value type 13"),
        (header(entry(b"k", 7, b"\2")), "truth value"),
        (header(entry(b"k", 8, struct.pack("<Q", 2**62))), "end of the file"),
        (header(entry(b"k", 8, struct.pack("<Q", 2) + b"\xff\xff")), "not UTF-8"),
        (header(entry(b"k" * 70_000, 4, b"\0" * 4)), "70000 bytes"),
        (header(entry(b"k", 9, struct.pack("<IQ", 4, 2**60))), "end of the file"),
        (header(entry(b"k", 9, struct.pack("<IQ", 8, 2**60))), "end of the file"),
        (header(entry(b"k", 9, struct.pack("<IQ", 9, 2**60))), "end of the file"),
        (header(entry(b"k", 9, struct.pack("<IQ", 77, 1))), "element type 77"),
        (header(entry(b"k", 9, struct.pack("<IQ", 9, 1) * 10_000 + struct.pack("<IQ", 4, 0))), "nested deeper"),
        (header(entry(b"general.alignment", 4, struct.pack("<I", 24))), "power of two"),
        (header(entry(b"general.alignment", 4, struct.pack("<I", 0))), "power of two"),
        (header(tensors=(tensor_info(b"t", (8,), 0, 0),) * 2), "second tensor 't'"),
        (header(tensors=(tensor_info(b"t", (8,), 0, 8),)), "multiple of the alignment"),
        (header(tensors=(tensor_info(b"t", (8,), 0, 2**40),)), "is the file complete"),
        (header(tensors=(tensor_info(b"t", (8,), 0, 2**63 + 32),)), "is the file complete"),
        (header(tensors=(tensor_info(b"t", (16,), 0, 0), tensor_info(b"u", (8,), 0, 32))), "overlapping tensor 't'"),
        (header(tensors=(tensor_info(b"t", (256,), 15, 0),)), r"type 15 \(Q8_K\) of tensor 't'.*Q8_0 \(8\)"),
        (header(tensors=(tensor_info(b"t", (256,), 4000, 0),)), "type 4000 of tensor 't'"),
        (header(tensors=(tensor_info(b"t", (40, 2), 8, 0),)), "rows of 40 values in tensor 't'.*multiple of 32"),
        (header(tensors=(tensor_info(b"t", (0, 2), 0, 0),)), "extents"),
        (header(tensors=(tensor_info(b"t", (2**33, 2**33), 0, 0),)), "extents"),
        (header(tensors=(tensor_info(b"t", (8,) * 5, 0, 0),)), "5 dimensions"),
        (header(tensors=(tensor_info(b"t", (), 0, 0),)), "0 dimensions"),
    ],
)
def test_each_kind_of_damage_has_an_error_that_names_it(content: bytes, said: str) -> None:
    with pytest.raises(ModelFileError, match=said):
        parse_gguf(content, "bad.gguf")


def test_version_2_is_read_as_version_3() -> None:
    content = bytearray(small_file())
    content[4] = 2
    assert parse_gguf(bytes(content), "v2.gguf").version == 2


def test_every_truncation_is_an_error_that_says_where() -> None:
    content = small_file()
    for length in range(len(content) - 31):  # the last bytes may be padding
        with pytest.raises(ModelFileError, match=r"cut\.gguf"):
            parse_gguf(content[:length], "cut.gguf")


CONTENT = small_file()


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(CONTENT) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_changed_bytes_never_do_more_than_raise(changes: list[tuple[int, int]]) -> None:
    content = bytearray(CONTENT)
    for position, value in changes:
        content[position] = value
    assert_parses_or_refuses(bytes(content))


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 1200), st.sampled_from([2**8, 2**16, 2**31, 2**32, 2**47, 2**63, 2**64]), st.integers(-3, 3))
def test_absurd_counts_anywhere_never_do_more_than_raise(position: int, count: int, nudge: int) -> None:
    content = bytearray(CONTENT)
    content[position : position + 8] = struct.pack("<Q", (count + nudge) % 2**64)
    assert_parses_or_refuses(bytes(content))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_arbitrary_bytes_behind_the_magic_never_do_more_than_raise(rest: bytes) -> None:
    assert_parses_or_refuses(b"GGUF\3\0\0\0" + rest)


def assert_parses_or_refuses(content: bytes) -> None:
    """Either outcome is right; anything but ModelFileError, or memory beyond a small multiple of the file, is not."""
    refusal = None
    tracemalloc.start()
    try:
        tensors = parse_gguf(content, "fuzz.gguf").tensors.values()
    except ModelFileError as error:
        refusal, tensors = error, {}.values()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert refusal is None or "fuzz.gguf" in str(refusal)
    assert all(tensor.data.size <= len(content) for tensor in tensors)
    assert peak < 64 * len(content) + 100_000


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
        st.one_of(
            st.integers(-(2**63), 2**64 - 1),
            st.booleans(),
            st.text(st.characters(exclude_categories=["Cs"])),
            st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
        ),
        max_size=6,
    )
)
def test_any_metadata_survive_writing_and_reading(metadata: dict[str, Any]) -> None:
    metadata.pop("general.alignment", None)
    metadata.pop("split.count", None)
    assert dict(parse_gguf(gguf_bytes(metadata, []), "any.gguf").metadata) == metadata


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"none\.gguf"):
        read_gguf(tmp_path / "none.gguf")


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    for path, said in [(tmp_path, "directory"), (tmp_path / "pipe", "regular"), (tmp_path / "empty", "empty")]:
        with pytest.raises(ModelFileError, match=said):
            read_gguf(path)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda facts: facts.text("int"), "'a.int' is 7; expected a string"),
        (lambda facts: facts.integer("text"), "expected a whole number"),
        (lambda facts: facts.integer("flag"), "expected a whole number"),
        (lambda facts: facts.integer("negative"), "from 1 to"),
        (lambda facts: facts.number("text"), "expected a number"),
        (lambda facts: facts.flag("int", True), "true or false"),
        (lambda facts: facts.text("not_there"), "is missing"),
    ],
)
def test_metadata_of_the_wrong_kind_are_named(call: Any, said: str) -> None:
    file = parse_gguf(small_file(), "small.gguf")
    with pytest.raises(ModelFileError, match=said):
        call(Facts(file, file.metadata, "a"))


def decode(tensor: TensorToWrite) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The blocks' arithmetic once more, the other way round."""
    size = BLOCK_SIZES[tensor.type][1]
    blocks = np.frombuffer(tensor.data, np.uint8).reshape(-1, size)
    if tensor.type in ("F32", "F16"):
        values = blocks.view("<f4" if tensor.type == "F32" else "<f2").astype(np.float32)
    elif tensor.type == "BF16":
        values = (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
        if tensor.type == "Q8_0":
            values = scale * blocks[:, 2:].view(np.int8)
        else:
            packed = blocks[:, size - 16 :]
            nibbles = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)
            low = blocks[:, 2:4].copy().view("<f2").astype(np.float32) if tensor.type == "Q4_1" else -8 * scale
            values = scale * nibbles + low
    assert values.size == np.prod(tensor.shape)
    return values.reshape(tensor.shape)


def test_a_message_about_a_very_long_key_stays_short(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "long.gguf", metadata={"k" * 30_000: 1})
    content = path.read_bytes()
    at = content.index(b"k" * 30_000) + 30_000
    path.write_bytes(content[:at] + b"\xff" * 4 + content[at + 4 :])
    with pytest.raises(ModelFileError, match=r"value type .* for metadata 'kkk") as caught:
        read_gguf(path)
    assert len(str(caught.value)) < 1200
