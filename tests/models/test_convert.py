"""Models into other containers and types: what comes out says what went in, and nothing half-made is left."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from puna.errors import InputError, ModelFileError
from puna.kernels.reference.dequantize import dequantize
from puna.kernels.tensor import RawTensor
from puna.models.conversion import convert, writing
from puna.models.conversion.mixes import MIXES, fitting, type_of
from puna.models.gguf import read_gguf
from puna.models.gguf_write import Typed, encode, write_gguf
from puna.models.load import load_model
from puna.models.quantize import ENCODERS, quantize
from tests.tiny import write_tiny_llama

TEXT = "hello world, it's 12345 \u00e9\u4f60 <|im_start|>user that\n\n  you"
# The most of a weight's spread that rounding may cost (root mean square) for normally distributed weights.
LOSS = {"F32": 0, "F16": 3e-4, "BF16": 2e-3, "Q8_0": 6e-3, "Q6_K": 0.019, "Q5_K": 0.037, "Q5_1": 0.036, "Q5_0": 0.043}
LOSS |= {"Q4_K": 0.074, "Q4_1": 0.08, "Q4_0": 0.085}


@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_rounding_costs_what_the_bits_allow_and_gguf_reads_the_same_values(kind: str) -> None:
    values = np.random.default_rng(3).standard_normal((64, 512), np.float32) * np.float32(0.02)
    encoded = quantize(values, kind)
    ours = dequantize(RawTensor("weight", kind, values.shape, encoded.reshape(-1)))
    assert np.sqrt(((ours - values) ** 2).mean()) <= LOSS[kind] * values.std()
    assert np.array_equal(ours, gguf.quants.dequantize(encoded, gguf.GGMLQuantizationType[kind]))


@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_rows_of_zeros_of_one_value_and_of_one_outlier_are_kept(kind: str) -> None:
    values = np.zeros((4, 256), np.float32)
    values[1], values[2], values[3, 17] = 0.5, -0.5, 64.0
    ours = dequantize(RawTensor("weight", kind, values.shape, quantize(values, kind).reshape(-1)))
    assert np.abs(ours - values).max() <= 64 * 0.04
    assert np.abs(ours[:3] - values[:3]).max() <= 0.5 * 0.04


@pytest.mark.parametrize("kind", sorted(MIXES))
def test_a_file_of_another_type_keeps_metadata_names_and_shapes(tmp_path: Path, kind: str) -> None:
    source = write_tiny_llama(tmp_path / "a.gguf", width=256, heads=4, head_dim=64, ffn=512)
    done = convert(source, tmp_path / "b.gguf", kind)
    before, after = read_gguf(source), read_gguf(done.path)
    changed = {"general.file_type", "general.quantization_version"}
    assert {key: repr(value) for key, value in after.metadata.items() if key not in changed} == {
        key: repr(value) for key, value in before.metadata.items() if key not in changed
    }
    assert after.metadata["general.file_type"] == MIXES[kind].number
    assert {name: tensor.shape for name, tensor in after.tensors.items()} == {
        name: tensor.shape for name, tensor in before.tensors.items()
    }
    assert after.tensors["blk.0.attn_q.weight"].type == MIXES[kind].most
    assert after.tensors["output_norm.weight"].type == "F32"


def test_narrow_rows_get_the_nearest_type_that_fits() -> None:
    assert [fitting("Q4_K", 256), fitting("Q4_K", 96), fitting("Q6_K", 96), fitting("Q4_0", 40)] == [
        *("Q4_K", "Q5_0", "Q8_0", "F16")
    ]
    assert type_of("blk.0.ffn_gate_inp.weight", (8, 256), "Q4_K_M", layers=8, tied=True) == "F32"
    assert type_of("token_embd.weight", (300, 256), "Q4_K_M", layers=8, tied=True) == "Q6_K"
    assert type_of("token_embd.weight", (300, 256), "Q4_K_M", layers=8, tied=False) == "Q4_K"


@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_and_the_file_made_of_it_say_what_the_first_file_said(tmp_path: Path, tied: bool) -> None:
    source = write_tiny_llama(tmp_path / "a.gguf", types="Q4_1", tied=tied)
    folder = convert(source, tmp_path / "folder", "F32").path
    again = convert(folder, tmp_path / "b.gguf", "F32").path
    models = [load_model(path) for path in (source, folder, again)]
    for other in models[1:]:
        assert other.spec.layers[0].attention.heads == models[0].spec.layers[0].attention.heads
        assert other.chat_template == models[0].chat_template
        for specials in (True, False):
            wanted = models[0].tokenizer.encode(TEXT, parse_special=specials)
            assert other.tokenizer.encode(TEXT, parse_special=specials) == wanted
        assert other.tokenizer.eos_ids == models[0].tokenizer.eos_ids
    for name, tensor in models[0].weights.items():
        assert np.array_equal(dequantize(models[2].weights[name]), dequantize(tensor)), name
    assert models[2].file.metadata["tokenizer.ggml.pre"] == "smollm"


def test_rows_of_queries_change_their_pairs_with_the_container(tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "a.gguf", heads=4, head_dim=16)
    folder = convert(source, tmp_path / "folder", "F32").path
    ours, theirs = (dequantize(load_model(path).weights["layers.0.attention.query"]) for path in (source, folder))
    for row in range(64):
        head, place = divmod(row, 16)
        assert np.array_equal(theirs[row], ours[head * 16 + 2 * (place % 8) + place // 8])


def test_what_is_there_is_replaced_only_by_force(tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "a.gguf")
    target = tmp_path / "b.gguf"
    target.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"b\.gguf is there already; --force replaces it"):
        convert(source, target, "Q8_0")
    assert target.read_bytes() == b"mine"
    convert(source, target, "Q8_0", force=True)
    assert read_gguf(target).tensors["blk.0.attn_q.weight"].type == "Q8_0"
    convert(source, tmp_path / "folder", "F16")
    assert convert(source, tmp_path / "folder", "F32", force=True).type == "F32"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf", "folder"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    source = write_tiny_llama(tmp_path / "a.gguf")

    def progress(done: int, total: int, _: str) -> None:
        if done > total // 2:
            raise failure

    wanted = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else InputError
    for target in ("b.gguf", "folder"):
        with pytest.raises(wanted):
            convert(source, tmp_path / target, "F16", progress=progress)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_no_work_is_begun_where_the_disk_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_tiny_llama(tmp_path / "a.gguf")
    monkeypatch.setattr(writing, "SPARE_BYTES", 1 << 60)
    with pytest.raises(InputError, match=r"needs .* MiB on its disk, which has .* MiB free"):
        convert(source, tmp_path / "b.gguf", "F16")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


@pytest.mark.parametrize(
    ("target", "kind", "message"),
    [
        ("b.gguf", "Q3", r"type 'Q3' is not known for a \.gguf file; known: F32, F16"),
        ("folder", "Q8_0", r"type 'Q8_0' is not known for a folder .*; known: F16, BF16, F32"),
        ("none/b.gguf", "F16", r"there is no folder .*none"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line(tmp_path: Path, target: str, kind: str, message: str) -> None:
    source = write_tiny_llama(tmp_path / "a.gguf")
    with pytest.raises(InputError, match=message):
        convert(source, tmp_path / target, kind)


def test_a_weight_too_large_for_the_type_is_named(tmp_path: Path) -> None:
    source = tmp_path / "a.gguf"
    values = np.ones((2, 32), np.float32)
    values[1, 3] = 1e6
    write_gguf(source, {"general.architecture": "llama"}, [encode("blk.0.attn_q.weight", values, "F32")])
    with pytest.raises(Exception, match=r"blk\.0\.attn_q\.weight.*1e\+06 does not fit into Q8_0"):
        convert(source, tmp_path / "b.gguf", "Q8_0")


def test_what_a_container_cannot_say_is_refused_and_written_only_when_told(tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "a.gguf", metadata={"llama.attention.scale": 0.5})
    with pytest.raises(InputError, match=r"cannot say .*scale: 0\.5, read as 0\.25.*--lossy"):
        convert(source, tmp_path / "folder", "F32")
    lost: Any = convert(source, tmp_path / "folder", "F32", lossy=True).lost
    assert len(lost) == 2


def test_the_source_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    source = write_tiny_llama(tmp_path / "inside" / "a.gguf")
    (tmp_path / "inside" / "config.json").write_text("{}")
    link = tmp_path / "link.gguf"
    link.symlink_to(source)
    before = source.read_bytes()
    for target in (source, tmp_path / "inside" / ".." / "inside" / "a.gguf", link, tmp_path / "inside"):
        with pytest.raises(InputError, match=r"is the source or holds it \(.*a\.gguf\); name another target"):
            convert(source, target, "F16", force=True)
    assert source.read_bytes() == before


def test_force_replaces_only_files_and_folders_with_a_model(tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "a.gguf")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    (tmp_path / "x.gguf").mkdir()
    (tmp_path / "file").write_text("mine")
    for target, said in (
        ("notes", r"notes is a folder without a model \(config\.json\), which is not replaced"),
        ("x.gguf", r"x\.gguf is there already, and is a folder; name another target"),
        ("file", r"file is there already, and is no folder; name another target"),
        ("notes/..", r"is no name of its own"),
    ):
        with pytest.raises(InputError, match=said):
            convert(source, tmp_path / target, "F16", force=True)
    assert (tmp_path / "notes" / "diary.txt").read_text() == (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
def test_a_folder_that_cannot_be_replaced_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    source = write_tiny_llama(tmp_path / "a.gguf")
    folder = convert(source, tmp_path / "folder", "F32").path
    before = (folder / "model.safetensors").read_bytes()

    def broken(*_: object) -> None:
        raise failure

    monkeypatch.setattr(writing.os, "replace", broken)
    with pytest.raises(KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else InputError):
        convert(source, folder, "F16", force=True)
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "folder"]


def test_odd_names_and_metadata_of_strangers_are_kept(tmp_path: Path) -> None:
    source = tmp_path / "a.gguf"
    tensors = [encode(f"blk.{name}.weight", np.ones((2, 32), np.float32), "F32") for name in ("x", "", "1e3", "\u00b2")]
    write_gguf(source, {"general.architecture": "llama", "x.large": Typed(gguf.GGUFValueType.FLOAT64, 1e300)}, tensors)
    after = read_gguf(convert(source, tmp_path / "b.gguf", "Q8_0").path)
    assert after.metadata["x.large"] == 1e300
    assert list(after.tensors) == [tensor.name for tensor in tensors]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 5}, r"tokenizers library cannot read it"),
        ({"added_tokens": [{"id": 1}]}, r"tokenizers library cannot read it"),
        (
            {"normalizer": {"type": "Lowercase"}},
            r"cuts text as GGUF cannot describe: .* token 0 would be another, near",
        ),
        ({"truncation": 5, "padding": "x"}, ""),
    ],
)
def test_a_tokenizer_that_gguf_would_not_keep_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    folder = convert(write_tiny_llama(tmp_path / "a.gguf"), tmp_path / "folder", "F32").path
    described = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(described | change))
    if not said:
        convert(folder, tmp_path / "b.gguf", "F16")
        return
    with pytest.raises(ModelFileError, match=said):
        convert(folder, tmp_path / "b.gguf", "F16")
    assert not (tmp_path / "b.gguf").exists()
