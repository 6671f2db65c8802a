"""Log-probabilities of what is drawn and of the prompt."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.conftest import EngineMaker
from tests.engine.driving import prompt, request, run


def test_the_probabilities_of_all_tokens_add_up_to_one(make_engine: EngineMaker) -> None:
    sample = run(make_engine(), request("r", prompt(10, 1), logprobs=256, temperature=3.0))["r", 0]
    for entry in sample.logprobs:
        top = [item.logprob for item in entry.top]
        assert top == sorted(top, reverse=True)
        assert [item.rank for item in entry.top] == list(range(1, 257))
        assert 0.95 < np.exp(top).sum() <= 1.0001  # 256 of 300 tokens


def test_a_drawn_token_has_its_rank_among_the_best(make_engine: EngineMaker) -> None:
    sample = run(make_engine(), request("r", prompt(10, 1), logprobs=200, temperature=4.0, max_tokens=30))["r", 0]
    ranked = [entry for entry in sample.logprobs if entry.token.rank <= 200]
    assert len(ranked) > 5
    for entry in ranked:
        assert entry.top[entry.token.rank - 1] == entry.token


def test_logprobs_are_of_the_raw_logits(make_engine: EngineMaker) -> None:
    engine = make_engine()
    plain = run(engine, request("r", prompt(10, 1), allowed_token_ids=[9], max_tokens=1))["r", 0].logprobs
    twisted = run(
        engine, request("r", prompt(10, 1), logit_bias={9: 100.0}, temperature=0.0, presence_penalty=1.0, max_tokens=1)
    )["r", 0].logprobs
    assert twisted == plain


def test_none_are_sent_where_none_were_asked_for(make_engine: EngineMaker) -> None:
    sample = run(make_engine(), request("r", prompt(10, 1), logprobs=None))["r", 0]
    assert sample.logprobs == []
    assert sample.prompt_logprobs is None


@pytest.mark.parametrize("budget", [1, 7, 64])
def test_a_prompts_logprobs_are_what_drawing_its_tokens_would_give(make_engine: EngineMaker, budget: int) -> None:
    """Every token of the prompt is forced once, behind all that stand before it."""
    engine = make_engine(budget_tokens=budget)
    tokens = prompt(24, 5)
    scored = run(engine, request("r", tokens, prompt_logprobs=3, max_tokens=2))["r", 0].prompt_logprobs
    assert scored is not None
    assert scored[0] is None
    assert [entry.token.token_id for entry in scored[1:] if entry] == tokens[1:]
    for place, entry in enumerate(scored[1:], 1):
        forced = request("f", tokens[:place], allowed_token_ids=[tokens[place]], logprobs=3, max_tokens=1)
        (drawn,) = run(engine, forced)["f", 0].logprobs
        assert entry is not None
        assert (entry.token.rank, [t.token_id for t in entry.top]) == (
            drawn.token.rank,
            [t.token_id for t in drawn.top],
        )
        assert entry.token.logprob == pytest.approx(drawn.token.logprob, abs=1e-4)


def test_a_prompt_of_one_token_has_one_empty_entry(make_engine: EngineMaker) -> None:
    assert run(make_engine(), request("r", [5], prompt_logprobs=0))["r", 0].prompt_logprobs == [None]


def test_a_cached_prefix_is_scored_all_the_same(make_engine: EngineMaker) -> None:
    engine = make_engine()
    first = run(engine, request("r", prompt(50, 5), prompt_logprobs=1))["r", 0]
    second = run(engine, request("r", prompt(50, 5), prompt_logprobs=1))["r", 0]
    assert second.cached_tokens == 0
    assert second.prompt_logprobs is not None
    assert first.prompt_logprobs is not None
    assert len(second.prompt_logprobs) == 50
    assert second.tokens == first.tokens


def test_prompt_logprobs_survive_preemption(make_engine: EngineMaker) -> None:
    requests = [request(f"r{i}", prompt(60, i), prompt_logprobs=2, max_tokens=30, ignore_eos=True) for i in range(4)]
    lone = make_engine()
    wanted = {key: sample for one in requests for key, sample in run(lone, one).items()}
    block_bytes = lone.config.kv_bytes // lone.backend.memory.kv.num_blocks
    engine = make_engine(kv_bytes=block_bytes * 10, max_model_len=100, budget_tokens=25)
    found = run(engine, *requests)
    assert engine.scheduler.stats().preemptions > 0
    for key, sample in found.items():
        assert sample.tokens == wanted[key].tokens
        pairs = zip(sample.prompt_logprobs or [], wanted[key].prompt_logprobs or [], strict=True)
        for one, other in pairs:
            assert (one is None) == (other is None)
            if one and other:
                assert one.token.logprob == pytest.approx(other.token.logprob, abs=1e-4)


def test_with_n_samples_the_prompt_is_scored_once(make_engine: EngineMaker) -> None:
    found = run(make_engine(), request("r", prompt(20, 1), n=3, prompt_logprobs=0, ignore_eos=True))
    assert [sample.prompt_logprobs is not None for _, sample in sorted(found.items())] == [True, False, False]
