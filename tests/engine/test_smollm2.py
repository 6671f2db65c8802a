"""The engine's promises on a real model and the native backend."""

from __future__ import annotations

from pathlib import Path

import pytest

from puna import LLM, SamplingParams
from puna.engine.replay import replay
from tests.engine.conftest import native

pytestmark = [pytest.mark.model, native]

PROMPTS = [
    "The llama is an animal that",
    "Once upon a time, in a village high in the Andes,",
    "def fibonacci(n):\n",
    "Las vicuñas viven en la puna, que es",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, " * 6,
]
PARAMS = [
    SamplingParams(seed=i, max_tokens=24, temperature=(0.0, 0.8)[i % 2], top_p=0.95, logprobs=2, ignore_eos=True)
    for i in range(len(PROMPTS))
]


def test_a_crowd_in_tight_memory_gets_bit_for_bit_what_each_gets_alone_and_replays(tmp_path: Path) -> None:
    with LLM(kv_bytes=1 << 28, budget_tokens=256, prefix_cache=False) as llm:
        wanted = [llm.generate(p, s)[0].outputs for p, s in zip(PROMPTS, PARAMS, strict=True)]
    path = tmp_path / "crowd.record"
    block_bytes = 16 * 23_040
    options = {"kv_bytes": 20 * block_bytes, "max_model_len": 288, "budget_tokens": 40, "swap_bytes": 6 * block_bytes}
    with LLM(record=str(path), **options) as llm:
        found = [output.outputs for output in llm.generate(PROMPTS, PARAMS)]
        again = [output.outputs for output in llm.generate(PROMPTS, PARAMS)]
        stats = llm.engine.scheduler.stats()
        assert stats.preemptions > 0
        assert stats.prefix_hits > 0
        assert stats.blocks_used == 0
    assert found == wanted
    assert again == wanted
    report = replay(path)
    assert report.exact, str(report)


def test_greedy_text_goes_on_sensibly() -> None:
    with LLM(kv_bytes=1 << 28, compute="float32") as llm:
        (output,) = llm.chat(
            [{"role": "user", "content": "What is the capital of France?"}],
            SamplingParams(temperature=0.0, max_tokens=30),
        )
    assert "Paris" in output.outputs[0].text
    assert output.outputs[0].finish_reason == "stop"
