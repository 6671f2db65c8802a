"""Small models that the packages of quantised formats wrote themselves: values beside those that the packages decode.

What wrote them, and how to write them again, is said in data/packed/README.md.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from puna.kernels.reference.dequantize import dequantize
from puna.models.conversion import convert
from puna.models.load import load_model
from puna.models.safetensors import read_safetensors

FOLDERS = sorted(path.parent for path in (Path(__file__).parent / "data" / "packed").glob("*/decoded.json"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_weight_is_what_the_package_decodes_to_the_bit(folder: Path) -> None:
    tensors = read_safetensors(folder).tensors
    wanted = json.loads((folder / "decoded.json").read_text())
    found = {name: hashlib.sha256(dequantize(tensors[name]).astype("<f4").tobytes()).hexdigest() for name in wanted}
    assert len(wanted) == 7
    assert found == wanted


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_folder_opens_as_a_model_and_converts_without_loss(folder: Path, tmp_path: Path) -> None:
    packed = load_model(folder)
    plain = load_model(convert(folder, tmp_path / "plain.gguf", "F32").path)
    assert list(packed.weights) == list(plain.weights)
    for name, tensor in packed.weights.items():
        if name.endswith(("query", "key")):  # GGUF keeps Llama's pairs in another order of rows
            assert np.array_equal(np.sort(dequantize(tensor), 0), np.sort(dequantize(plain.weights[name]), 0))
        else:
            assert np.array_equal(dequantize(tensor), dequantize(plain.weights[name])), name
