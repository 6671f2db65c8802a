"""Models that are split over several GGUF files: any part opens the whole, and what is missing or swapped is named."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from puna.errors import ModelFileError
from puna.models.gguf import read_gguf
from puna.models.gguf_format import UINT16
from puna.models.gguf_write import TensorToWrite, Typed, write_gguf
from puna.models.load import load_model
from puna.models.names import resolve
from tests.tiny import write_tiny_llama

PARTS = 3


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    return write_parts(tmp_path, seed=0)


def write_parts(folder: Path, seed: int) -> list[Path]:
    whole = read_gguf(write_tiny_llama(folder / "whole.bin", seed=seed))
    tensors = [TensorToWrite(t.name, t.type, t.shape, t.data.tobytes()) for t in whole.tensors.values()]
    paths = []
    for number in range(PARTS):
        metadata = dict(whole.metadata) if number == 0 else {}
        metadata |= {
            "split.no": Typed(UINT16, number),
            "split.count": Typed(UINT16, PARTS),
            "split.tensors.count": len(tensors),
        }
        paths.append(folder / f"tiny-{number + 1:05d}-of-{PARTS:05d}.gguf")
        write_gguf(paths[-1], metadata, tensors[number::PARTS])
    return paths


@pytest.mark.parametrize("number", range(PARTS))
def test_any_part_opens_the_whole_model(parts: list[Path], number: int) -> None:
    model, whole = load_model(parts[number]), load_model(parts[0].with_name("whole.bin"))
    assert model.spec == whole.spec
    assert model.file.size == sum(path.stat().st_size for path in parts)
    for name, weight in whole.weights.items():
        np.testing.assert_array_equal(model.weights[name].data, weight.data)


def test_a_folder_of_parts_is_a_model_by_its_first(parts: list[Path]) -> None:
    assert resolve(str(parts[0].parent)) == parts[0]


def test_another_models_part_changes_the_fingerprint(parts: list[Path], tmp_path: Path) -> None:
    before = load_model(parts[0]).fingerprint
    (tmp_path / "other").mkdir()
    other = write_parts(tmp_path / "other", seed=1)
    parts[2].write_bytes(other[2].read_bytes())
    assert load_model(parts[0]).fingerprint != before


def test_a_missing_part_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    with pytest.raises(ModelFileError, match=r"part 2 of 3 is missing; expected tiny-00002-of-00003\.gguf"):
        read_gguf(parts[0])


def test_parts_in_each_others_place_are_named(parts: list[Path]) -> None:
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(ModelFileError, match=re.escape("00002-of-00003.gguf: says that it is part 2 (from 0) of 3")):
        read_gguf(parts[0])


def test_a_part_that_was_renamed_is_told_what_it_should_be_called(parts: list[Path]) -> None:
    renamed = parts[0].rename(parts[0].with_name("model.gguf"))
    with pytest.raises(ModelFileError, match=r"one of 3 parts .* NAME-00001-of-00003\.gguf"):
        read_gguf(renamed)


def test_a_part_with_fewer_tensors_is_noticed(parts: list[Path]) -> None:
    file = read_gguf(parts[0])
    part = file.others[0]
    kept = [TensorToWrite(t.name, t.type, t.shape, t.data.tobytes()) for t in part.tensors.values()][1:]
    metadata = {key: Typed(UINT16, value) for key, value in part.metadata.items()}
    write_gguf(parts[1], metadata, kept)
    with pytest.raises(ModelFileError, match="its parts hold"):
        read_gguf(parts[0])
