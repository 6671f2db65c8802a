"""lm-eval on a task of four questions: its log-likelihoods over HTTP are those that `puna.LLM` computes here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from puna import LLM, SamplingParams
from tests.clients.conftest import client_library
from tests.server.process import ServerProcess

client_library("lm_eval")
pytestmark = [pytest.mark.clients, pytest.mark.model]

QUESTIONS = [
    {"question": "the llama", "choices": [" hello", " and you", "ing"], "answer": 1},
    {"question": "hello system", "choices": [" that", " user"], "answer": 0},
    {"question": "you", "choices": [" zebra", " assistant the llama"], "answer": 1},
    {"question": "was it not", "choices": [" this", " from", " with", " for"], "answer": 2},
]


def write_task(folder: Path) -> None:
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    task = {
        "task": "puna_questions",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        "doc_to_choice": "choices",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "puna_questions.yaml").write_text(json.dumps(task))


def evaluate(server: ServerProcess, folder: Path) -> dict[str, Any]:
    from lm_eval import simple_evaluate  # type: ignore[import-not-found, unused-ignore]
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found, unused-ignore]

    write_task(folder)
    arguments = {
        "model": "smollm2",
        "base_url": f"{server.url}/v1/completions",
        "max_length": 256,
        "auth_token": "secret",
        "tokenizer_backend": "remote",
        "header": {"Authorization": "Bearer secret"},
    }
    results: dict[str, Any] = simple_evaluate(
        model="local-completions",
        model_args=arguments,
        tasks=["puna_questions"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    return results


def ours() -> list[list[float]]:
    """The same sums from the log-probabilities of the prompt's tokens."""
    sums = []
    with LLM("smollm2", max_model_len=2048) as llm:
        for question in QUESTIONS:
            texts = [str(question["question"]) + choice for choice in question["choices"]]  # type: ignore[attr-defined]
            params = SamplingParams(max_tokens=1, prompt_logprobs=0)
            before = len(llm.generate(str(question["question"]), params)[0].prompt_token_ids)
            row = []
            for output in llm.generate(texts, params):
                assert output.prompt_logprobs is not None
                ids = output.prompt_token_ids
                scored = list(zip(ids, output.prompt_logprobs, strict=True))[before:]
                row.append(sum(position[token].logprob for token, position in scored if position is not None))
            sums.append(row)
    return sums


def test_log_likelihoods_are_our_own(server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    results = evaluate(server, tmp_path)
    samples = sorted(results["samples"]["puna_questions"], key=lambda sample: sample["doc_id"])
    theirs = [[float(value) for value, _ in sample["filtered_resps"]] for sample in samples]
    wanted = ours()
    assert [len(row) for row in theirs] == [3, 2, 2, 4]
    for one, two in zip(theirs, wanted, strict=True):
        assert one == pytest.approx(two, abs=1e-6)
    best = [row.index(max(row)) for row in wanted]
    right = [choice == question["answer"] for choice, question in zip(best, QUESTIONS, strict=True)]
    assert results["results"]["puna_questions"]["acc,none"] == sum(right) / len(right)
