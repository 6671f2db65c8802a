"""A seed is drawn where none is given, and reported, so that every answer can be had again."""

from __future__ import annotations

from pathlib import Path

from puna import LLM, SamplingParams
from tests.engine.conftest import native

QUESTION = {"prompt_token_ids": [5, 6, 7, 8]}


@native
def test_a_drawn_seed_is_reported_and_gives_the_same_answer_again(tiny: Path) -> None:
    params = SamplingParams(n=3, temperature=1.5, max_tokens=12, ignore_eos=True)
    with LLM(str(tiny), kv_bytes=1 << 20, max_seqs=8) as llm:
        first, second = llm.generate([QUESTION, QUESTION], params, use_tqdm=False)
        seeds = [sample.seed for sample in (*first.outputs, *second.outputs)]
        assert len(set(seeds)) == 6
        for sample in (*first.outputs, *second.outputs):
            again = SamplingParams(seed=sample.seed, temperature=1.5, max_tokens=12, ignore_eos=True)
            (found,) = llm.generate([QUESTION], again, use_tqdm=False)
            assert found.outputs[0].token_ids == sample.token_ids
            assert found.outputs[0].seed == sample.seed
