"""Every family out of transformers' folder into GGUF and back into a folder that transformers opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from puna.models.conversion import convert
from puna.models.load import load_model

pytest.importorskip("torch", reason="the extra `oracle` is not installed")
pytest.importorskip("transformers", reason="the extra `oracle` is not installed")

from tests.oracle.running import deviation, logits
from tests.oracle.small_models import ALL, BY_NAME, IDS, answer

pytestmark = pytest.mark.oracle
CLOSE = 1e-3
# What GGUF cannot say; asked for with `lossy`, so that the way back is tried all the same.
NOT_KEPT = {
    "llama, dynamic": "dynamic",
    "qwen2": "window",
    "qwen3_moe": "window",
    "gemma2": "scale",
    "gemma3": "scale",
    "gpt2, scaled by layer": "scale",
    "falcon, one after the other": "parallel",
}
REFUSED = ("opt",)
NO_WAY_BACK = ("falcon, one after the other",)  # another model when GGUF has taken it for one beside each other


@pytest.mark.parametrize("name", [small.name for small in ALL if small.name not in REFUSED])
def test_a_family_survives_the_way_to_gguf_and_back(answered: Any, tmp_path: Path, name: str) -> None:
    import torch
    import transformers

    case, length = answered(name), len(IDS) if BY_NAME[name].length else 0
    lossy = name in NOT_KEPT
    there = convert(case.folder, tmp_path / "model.gguf", "F32", lossy=lossy)
    found = logits(load_model(there.path, length=length), IDS)
    if lossy:
        assert any(NOT_KEPT[name] in line for line in there.lost)
    else:
        assert deviation(found, case.wanted) <= CLOSE
    if name in NO_WAY_BACK:
        return
    back = convert(there.path, tmp_path / "folder", "F32")
    opened = transformers.AutoModelForCausalLM.from_pretrained(
        back.path, dtype=torch.float32, attn_implementation="eager"
    )
    assert deviation(answer(opened.eval(), IDS), found) <= CLOSE
