"""`puna chat --tools`: calls are shown, and a person at the terminal says what they gave. The form makes the call."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.process import Terminal, puna

TOOLS = [
    {"name": "switch", "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}}},
    {"type": "function", "function": {"name": "look"}},
]
CALL = '{"name": "switch", "arguments": {"on": true}}'


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(TOOLS))
    return path


def options(model: Path) -> list[str]:
    return ["-m", str(model), "--backend", "reference", "--choice", CALL]


def test_a_call_is_printed_as_a_line_of_its_own(patient_model: Path, tools: Path) -> None:
    done = puna("chat", "light!", *options(patient_model), "--tools", str(tools))
    assert done.stdout == 'call: switch {"on": true}\n', done.stderr
    plain = puna("chat", "light!", *options(patient_model))
    assert plain.stdout == CALL + "\n"


def test_a_person_answers_a_call_and_the_model_goes_on(patient_model: Path, tools: Path, tmp_path: Path) -> None:
    terminal = Terminal("chat", *options(patient_model), "--tools", str(tools))
    try:
        terminal.wait_for(">>> ")
        terminal.type("light!")
        terminal.wait_for("result of switch: ")
        terminal.type("done")
        terminal.wait_for("result of switch: ")  # the form makes it call again
        terminal.press_ctrl_c()
        terminal.wait_for(">>> ")
        assert f"saved to {tmp_path / 'kept'}" in terminal.ask(f"/save {tmp_path / 'kept'}")
    finally:
        terminal.kill()
    assert json.loads((tmp_path / "kept").read_text())["messages"] == []  # what was not answered is taken back


@pytest.mark.parametrize("text", ["{}", '[{"name": "a b"}]', "no json", '[{"type": "web_search", "function": {}}]'])
def test_a_file_that_has_no_tools_is_refused(tiny_model: Path, tmp_path: Path, text: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(text)
    done = puna("chat", "light!", *options(tiny_model), "--tools", str(path))
    assert done.returncode != 0
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr
