"""Every family through GGUF: the small models converted by llama.cpp's own converter, read by us.

PUNA_LLAMA_CPP names a folder with llama.cpp's source (convert_hf_to_gguf.py and conversion/); without it these tests
are skipped. What GGUF does not keep of a model is written beside it (`lost` in small_models.py), and has to be all.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from puna.models.load import load_model

pytest.importorskip("torch", reason="the extra `oracle` is not installed")
pytest.importorskip("transformers", reason="the extra `oracle` is not installed")

from tests.oracle.running import changed, deviation, logits
from tests.oracle.small_models import ALL, BY_NAME, IDS, VOCABULARY, SmallModel

SOURCE = os.environ.get("PUNA_LLAMA_CPP", "")
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(not SOURCE, reason="PUNA_LLAMA_CPP does not name a folder with llama.cpp's source"),
]
CLOSE = 1e-3
CONVERTED = [small.name for small in ALL if not small.refused]
VOCABULARY_FILE = {"model": {"vocab": {f"t{token}": token for token in range(VOCABULARY)}}, "added_tokens": []}


@pytest.fixture(scope="module")
def converted(answered: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The GGUF file of each model. All in one process: loading the converter takes longer than its work."""
    base = tmp_path_factory.mktemp("converted")
    pairs = [(_as_published(BY_NAME[name], answered(name).folder, base), base / f"{name}.gguf") for name in CONVERTED]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("llama_cpp.py")), SOURCE],
        input=json.dumps([[str(folder), str(out)] for folder, out in pairs]),
        capture_output=True,
        text=True,
        check=False,
    )
    refusals = {name: json.loads(line) for name, line in zip(CONVERTED, done.stdout.splitlines(), strict=False)}
    assert refusals == dict.fromkeys(CONVERTED), done.stderr[-2000:]
    return {name: out for name, (_, out) in zip(CONVERTED, pairs, strict=True)}


def _as_published(small: SmallModel, folder: Path, base: Path) -> Path:
    """A copy of the folder with what the converter looks for: older entries of config.json, a list of tokens."""
    copy = base / small.name
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text()) | small.older
    config = {key: value for key, value in config.items() if small.older.get(key, 0) is not None}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "tokenizer.json").write_text(json.dumps(VOCABULARY_FILE))
    return copy


@pytest.mark.parametrize("name", CONVERTED)
def test_a_converted_model_says_what_its_folder_says(answered: Any, converted: dict[str, Path], name: str) -> None:
    small, case = BY_NAME[name], answered(name)
    model = load_model(converted[name], length=len(IDS) if small.length else 0)
    wanted = logits(changed(case.model, **small.lost), IDS) if small.lost else case.wanted
    found = deviation(logits(model, IDS), wanted)
    print(f"\n{name}: {found:.1e}")
    assert found <= CLOSE
