"""best_of: more samples are drawn than are returned, and the likeliest a token are kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from puna import LLM, BeamSearchParams, SamplingParams
from puna.engine.collect import CompletionOutput
from puna.errors import InputError

DRAWN: dict[str, Any] = {"temperature": 2.0, "seed": 11, "max_tokens": 12}


@pytest.fixture
def llm(tiny: Path, backend: str) -> Iterator[LLM]:
    with LLM(str(tiny), backend=backend, kv_bytes=1 << 20, max_seqs=8, budget_tokens=64) as llm:
        yield llm
        stats = llm.engine.scheduler.stats()
        assert (stats.blocks_used, stats.waiting, stats.running) == (0, 0, 0)


def mean(answer: CompletionOutput) -> float:
    assert answer.cumulative_logprob is not None
    return answer.cumulative_logprob / len(answer.token_ids)


@pytest.mark.parametrize("stop", [[], ["e"]])
def test_the_best_of_are_the_likeliest_a_token_of_as_many_samples(llm: LLM, stop: list[str]) -> None:
    (drawn,) = llm.generate("hello llama", SamplingParams(n=6, logprobs=1, stop=stop, **DRAWN))
    (chosen,) = llm.generate("hello llama", SamplingParams(n=2, best_of=6, logprobs=1, stop=stop, **DRAWN))
    wanted = sorted(drawn.outputs, key=mean, reverse=True)[:2]
    assert [answer.index for answer in chosen.outputs] == [0, 1]
    for found, best in zip(chosen.outputs, wanted, strict=True):
        assert (found.token_ids, found.seed, found.logprobs) == (best.token_ids, best.seed, best.logprobs)
        assert found.score == pytest.approx(mean(best))
        alone = SamplingParams(stop=stop, **(DRAWN | {"seed": found.seed}))
        assert llm.generate("hello llama", alone)[0].outputs[0].token_ids == found.token_ids


def test_log_probabilities_that_nobody_asked_for_are_not_returned(llm: LLM) -> None:
    (answer,) = llm.generate("hello", SamplingParams(best_of=3, **DRAWN))[0].outputs
    assert (answer.logprobs, answer.cumulative_logprob) == (None, None)
    assert answer.score is not None


def test_as_many_as_are_returned_are_all_there_are(llm: LLM) -> None:
    (plain,) = llm.generate("hello", SamplingParams(n=3, **DRAWN))
    (chosen,) = llm.generate("hello", SamplingParams(n=3, best_of=3, **DRAWN))
    assert [answer.token_ids for answer in chosen.outputs] == [answer.token_ids for answer in plain.outputs]


def test_beam_search_has_vllms_face(llm: LLM) -> None:
    (output,) = llm.beam_search(["hello llama"], BeamSearchParams(beam_width=3, max_tokens=6))
    (same,) = llm.generate("hello llama", SamplingParams(temperature=0, n=3, beam_width=3, max_tokens=6, logprobs=0))
    assert [s.tokens[len(same.prompt_token_ids) :] for s in output.sequences] == [a.token_ids for a in same.outputs]
    best = output.sequences[0]
    assert best.tokens[: len(same.prompt_token_ids)] == same.prompt_token_ids
    assert best.text.startswith("hello llama")
    assert best.score == pytest.approx(best.cum_logprob / len(same.outputs[0].token_ids))
    assert len(best.logprobs) == len(same.outputs[0].token_ids)
    assert [s.score for s in output.sequences] == sorted((s.score for s in output.sequences), reverse=True)
    with pytest.raises(InputError, match="temperature"):
        llm.beam_search(["hello"], BeamSearchParams(beam_width=3, max_tokens=6, temperature=0.5))
    with pytest.raises(InputError, match="1 to 256"):
        llm.beam_search(["hello"], BeamSearchParams(beam_width=0, max_tokens=6))
