"""`puna` with a real model: what a person gets on the first day."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from puna.models.names import resolve
from tests.cli.process import Terminal, puna

pytestmark = pytest.mark.model

QUESTIONS = [
    ("What is the capital of Japan?", "Tokyo"),
    ("What is the capital of Germany?", "Berlin"),
    ("What is the largest ocean on Earth?", "Pacific"),
    ("What is the chemical symbol for water?", "H2O"),
    ("How many days are in a week?", "7"),
]


@pytest.mark.parametrize(("question", "word"), QUESTIONS)
def test_a_factual_question_is_answered(question: str, word: str) -> None:
    done = puna("chat", question, "--max-tokens", "40")
    assert done.returncode == 0, done.stderr
    assert word in done.stdout


def test_a_conversation_remembers_what_was_said() -> None:
    terminal = Terminal("chat", "--max-tokens", "24")
    try:
        terminal.wait_for(">>> ")
        assert "Tokyo" in terminal.ask("What is the capital of Japan?")
        second = terminal.ask("And what is the capital of Germany?")
        assert "Berlin" in second
        cached = int(second.split("of which ")[1].split()[0])
        assert cached >= 32
        terminal.type("/exit")
        assert terminal.exit_code() == 0
    finally:
        terminal.kill()


def test_prompts_in_bulk_are_answered_as_alone(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    lines = [json.dumps({"id": q, "messages": [{"role": "user", "content": q}]}) for q, _ in QUESTIONS]
    source.write_text("\n".join(lines))
    done = puna("generate", "--jsonl", str(source), "--max-tokens", "16")
    assert done.returncode == 0, done.stderr
    together = [json.loads(line) for line in done.stdout.splitlines()]
    alone = json.loads(puna("generate", "--jsonl", "-", "--max-tokens", "16", stdin=lines[3]).stdout)
    assert together[3]["outputs"] == alone["outputs"]
    assert [record["id"] for record in together] == [question for question, _ in QUESTIONS]


def test_inspect_knows_the_model() -> None:
    facts = json.loads(puna("inspect", "smollm2", "--json").stdout)
    assert facts["layers"] == 30
    assert facts["kv_bytes_per_token"]["f16"] == 23040
    assert facts["licence"] == "apache-2.0"


def test_where_a_model_lies_is_whole_in_a_pipe() -> None:
    assert f"{resolve('smollm2')}\n" in puna("models").stdout.replace(" \n", "\n")
