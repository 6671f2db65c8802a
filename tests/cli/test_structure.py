"""Forms of answers on the command line: from options and files, and from lines of JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from puna.cli.options import SamplingOptions
from puna.engine.structure import StructuredOutputs
from tests.cli.process import puna

SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 9}, "minItems": 2, "maxItems": 2}


def test_options_become_a_form_and_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "grammar.lark").write_text('start: "a"')

    def form(**given: object) -> StructuredOutputs | None:
        return SamplingOptions(**given).params().structured_outputs  # type: ignore[arg-type]

    assert form() is None
    assert form(json_object=True) == StructuredOutputs(json_object=True, named="json_object")
    for given in (str(tmp_path / "schema.json"), json.dumps(SCHEMA)):
        wanted = StructuredOutputs(json=json.dumps(SCHEMA), any_whitespace=True, named="json_schema")
        assert form(json_schema=given, any_whitespace=True) == wanted
    assert form(regex="a+") == StructuredOutputs(regex="a+", named="regex")
    assert form(choice=["a", "b"]) == StructuredOutputs(choice=["a", "b"], named="choice")
    assert form(grammar=str(tmp_path / "grammar.lark")) == StructuredOutputs(grammar='start: "a"', named="grammar")
    for wrong in ({"regex": "a", "choice": ["b"]}, {"any_whitespace": True}, {"json_schema": str(tmp_path / "none")}):
        with pytest.raises(typer.BadParameter):
            form(**wrong)


def test_answers_have_the_form_and_a_bad_line_fails_alone(tiny_model: Path) -> None:
    lines = [
        {"prompt": "hello", "structured_outputs": {"json": SCHEMA}},
        {"prompt": "hello", "structured_outputs": {"json": {"not": {}}}},
        {"prompt": "hello", "structured_outputs": {"json": SCHEMA, "regex": "a"}},
        {"prompt": "hello", "max_tokens": 3},
    ]
    options = [
        "-m",
        str(tiny_model),
        "--backend",
        "reference",
        "--temperature",
        "5",
        "--seed",
        "1",
        "--max-tokens",
        "40",
    ]
    done = puna("generate", "--jsonl", "-", *options, stdin="\n".join(map(json.dumps, lines)))
    assert done.returncode == 1
    first, second, third, last = (json.loads(line) for line in done.stdout.splitlines())
    assert all(1 <= number <= 9 for number in json.loads(first["outputs"][0]["text"]))
    assert "uses not" in second["error"]
    assert "exactly one" in third["error"]
    assert len(last["outputs"][0]["token_ids"]) <= 3
    chat = puna("chat", "hello", "--choice", "yes", "--choice", "no", *options)
    assert chat.returncode == 0, chat.stderr
    assert chat.stdout.strip() in ("yes", "no")
    wrong = puna("chat", "hello", "--regex", "a(", *options)
    assert wrong.returncode == 1
    assert "unclosed" in wrong.stderr
