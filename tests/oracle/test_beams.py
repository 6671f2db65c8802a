"""Beam search beside transformers', on SmolLM2 in float32: the same answers, in the same order, at the same scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from puna import LLM, SamplingParams
from puna.models.load import LoadedModel

torch = pytest.importorskip("torch", reason="the extra `oracle` is not installed")
pytest.importorskip("transformers", reason="the extra `oracle` is not installed")
pytest.importorskip("gguf", reason="the extra `oracle` is not installed")

pytestmark = [pytest.mark.oracle, pytest.mark.model, pytest.mark.timeout(1200)]

TEXTS = (
    "The capital of France is",
    "Once upon a time there was a llama who",
    "<|im_start|>user\nWhat is two and two?<|im_end|>\n<|im_start|>assistant\n",
)
SEARCHES: tuple[dict[str, Any], ...] = (
    {"width": 2, "tokens": 12, "penalty": 1.0, "early": False},
    {"width": 4, "tokens": 16, "penalty": 1.0, "early": False},
    {"width": 4, "tokens": 14, "penalty": 0.0, "early": True},
    {"width": 5, "tokens": 12, "penalty": 2.0, "early": "never"},
    {"width": 3, "tokens": 12, "penalty": -1.0, "early": True},
)


@pytest.fixture(scope="module")
def llm(smollm2: LoadedModel) -> Iterator[LLM]:
    with LLM(
        str(smollm2.path), compute="float32", kv_dtype="f32", kv_bytes=1 << 28, max_model_len=512, max_seqs=8
    ) as llm:
        yield llm


@pytest.mark.parametrize("search", range(len(SEARCHES)))
def test_answers_and_scores_are_those_of_transformers(llm: LLM, oracle: Any, search: int) -> None:
    wanted = SEARCHES[search]
    prompt = llm.get_tokenizer().encode(TEXTS[search % len(TEXTS)], parse_special=True)
    ends = list(llm.get_tokenizer().eos_ids)
    with torch.no_grad():
        theirs = oracle.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            num_beams=wanted["width"],
            num_return_sequences=wanted["width"],
            max_new_tokens=wanted["tokens"],
            length_penalty=wanted["penalty"],
            early_stopping=wanted["early"],
            eos_token_id=ends,
            pad_token_id=ends[0],
            repetition_penalty=1.0,
            return_dict_in_generate=True,
            output_scores=True,
        )
    params = SamplingParams(
        temperature=0.0,
        n=wanted["width"],
        beam_width=wanted["width"],
        max_tokens=wanted["tokens"],
        length_penalty=wanted["penalty"],
        early_stopping=wanted["early"],
        logprobs=0,
    )
    (ours,) = llm.generate([prompt], params)
    answers = [_answer(row[len(prompt) :].tolist(), ends) for row in theirs.sequences]
    assert [answer.token_ids for answer in ours.outputs] == answers
    scores = [answer.score for answer in ours.outputs]
    np.testing.assert_allclose(scores, theirs.sequences_scores.numpy(), rtol=1e-3, atol=1e-3)


def _answer(tokens: list[int], ends: list[int]) -> list[int]:
    """Up to its end; transformers pads what is behind it."""
    for place, token in enumerate(tokens):
        if token in ends:
            return tokens[: place + 1]
    return tokens
