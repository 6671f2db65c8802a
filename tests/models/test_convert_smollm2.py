"""A real model converted: the answer's quality before and after, and the quick path on what came out.

One window of 512 tokens; docs/models.md has the figures of whole texts and of other models, beside llama.cpp.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from puna.engine.backend import settle_cache
from puna.engine.config import EngineConfig
from puna.kernels.batch import KVConfig
from puna.kernels.cpu import NativeInterpreter, paths
from puna.models.conversion import convert
from puna.models.load import LoadedModel, load_model
from tests.kernels.steps import rows, step

pytestmark = pytest.mark.model

TEXT = Path(__file__).parents[1] / "data" / "accuracy_text.txt"
WINDOW, BLOCKS = 512, 34
# The most that perplexity may grow by rounding the weights of a Q4_1 file once more.
COST = {"Q8_0": 0.01, "Q4_0": 0.35}
# Rounded activations move 255 tokens' perplexity by this much at most; the standard error is 0.002.
QUICK = 0.01


@pytest.fixture(scope="module")
def ids(smollm2: LoadedModel) -> list[int]:
    return smollm2.tokenizer.encode(TEXT.read_text(encoding="utf-8"))[:WINDOW]


@pytest.fixture(scope="module")
def before(smollm2: LoadedModel, ids: list[int]) -> float:
    return perplexity(smollm2, ids, "f32", compute="float32")


def perplexity(model: LoadedModel, ids: list[int], kv_dtype: str, **options: str) -> float:
    """Of the window's second half."""
    interpreter = NativeInterpreter(model.program, model.weights, KVConfig(BLOCKS, 16, kv_dtype), **options)
    index = range(WINDOW // 2, WINDOW - 1)
    samples = rows(index, target=[ids[place + 1] for place in index], num_logprobs=0)
    out = interpreter.step(step([(ids[:-1], 0, range(1, BLOCKS))], samples, want_logits=False))
    return float(np.exp(-out.logprob.astype(np.float64).mean()))


@pytest.mark.parametrize("kind", COST)
def test_a_converted_model_predicts_as_its_weights_say(
    smollm2: LoadedModel, ids: list[int], before: float, tmp_path: Path, kind: str
) -> None:
    model = load_model(convert(smollm2.path, tmp_path / "a.gguf", kind).path)
    assert model.tokenizer.encode(TEXT.read_text(encoding="utf-8"))[:WINDOW] == ids
    exact = perplexity(model, ids, "f32", compute="float32")
    print(f"\n{kind}: float32 {exact:.3f}, before {before:.3f} ({exact / before - 1:+.2%})")
    assert abs(exact / before - 1) <= COST[kind]
    for isa in [isa for isa in paths() if isa in ("amx", "avx512")] or paths()[:1]:
        quick = perplexity(model, ids, settle_cache(EngineConfig(isa=isa)).kv_dtype, isa=isa)
        print(f"{isa}: {quick:.3f} ({quick / exact - 1:+.3%})")
        assert abs(quick / exact - 1) <= QUICK
