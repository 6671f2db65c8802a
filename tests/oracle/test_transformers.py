"""The NumPy interpreter beside transformers: another implementation of the same model, on the same weights.

Needs the extra `oracle` (torch, transformers, gguf) and is skipped without it. transformers reads the GGUF file itself
and decodes it to float32, so this also checks how weights are named, turned and decoded, and rotary embeddings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from puna.kernels.batch import KVConfig
from puna.kernels.reference.interpreter import ReferenceInterpreter
from puna.models.load import LoadedModel
from tests.kernels.steps import rows, step

torch = pytest.importorskip("torch", reason="the extra `oracle` is not installed")
pytest.importorskip("transformers", reason="the extra `oracle` is not installed")
pytest.importorskip("gguf", reason="the extra `oracle` is not installed")

pytestmark = [pytest.mark.oracle, pytest.mark.model, pytest.mark.timeout(1200)]

TEXT = Path(__file__).parents[1] / "data" / "accuracy_text.txt"
TOKENS = 320
CHUNK = 96


@pytest.fixture(scope="module")
def ids(smollm2: LoadedModel) -> list[int]:
    return smollm2.tokenizer.encode(TEXT.read_text(encoding="utf-8"))[:TOKENS]


def ours(model: LoadedModel, ids: list[int]) -> npt.NDArray[np.float32]:
    """In chunks, so that attention over cached keys is part of what is compared."""
    blocks = -(-len(ids) // 16)
    interpreter = ReferenceInterpreter(model.program, model.weights, KVConfig(blocks + 1, 16, "f32"))
    parts = []
    for begin in range(0, len(ids), CHUNK):
        chunk = ids[begin : begin + CHUNK]
        out = interpreter.step(step([(chunk, begin, range(1, blocks + 1))], rows(range(len(chunk)))))
        assert out.logits is not None
        parts.append(out.logits)
    return np.concatenate(parts)


def test_logits_are_those_of_transformers_within_a_thousandth(
    smollm2: LoadedModel, oracle: Any, ids: list[int]
) -> None:
    with torch.no_grad():
        wanted = oracle(torch.tensor([ids])).logits[0].float().numpy()
    found = ours(smollm2, ids)
    deviation = np.abs(found - wanted).max() / np.abs(wanted).max()
    print(f"\nlargest deviation: {deviation:.1e} of the largest logit, over {len(ids)} tokens")
    assert deviation <= 1e-3
    assert (found.argmax(axis=1) == wanted.argmax(axis=1)).mean() >= 0.99


def test_greedy_continuations_are_those_of_transformers(smollm2: LoadedModel, oracle: Any, ids: list[int]) -> None:
    prompt, count = ids[:40], 12
    known = list(prompt)
    for _ in range(count):
        known.append(int(ours(smollm2, known)[-1].argmax()))
    with torch.no_grad():
        answer = oracle.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
            pad_token_id=0,
            eos_token_id=None,
        )
    assert known == answer[0].tolist()
