"""`llm`, told of this server as its documentation says: a file that names the model and the address."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import client_library
from tests.server.process import ServerProcess

llm = client_library("llm")
pytestmark = [pytest.mark.clients, pytest.mark.model]


@pytest.fixture
def user_dir(server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "extra-openai-models.yaml").write_text(
        "".join(
            f"- model_id: {name}\n  model_name: smollm2\n  api_base: {server.url}/v1\n  api_key_name: puna\n{further}\n"
            for name, further in (("puna", ""), ("puna-responses", "  responses: true"))
        )
    )
    (tmp_path / "keys.json").write_text('{"puna": "secret"}')
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    return tmp_path


def test_the_command_answers_with_what_the_model_says(user_dir: Path, said: str) -> None:
    options = ["-n", "-o", "temperature", "0", "-o", "max_tokens", "12"]
    done = subprocess.run(
        [sys.executable, "-m", "llm", "-m", "puna", *options, "hello llama"],
        env={**os.environ, "LLM_USER_PATH": str(user_dir)},
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.removesuffix("\n") == said


@pytest.mark.usefixtures("user_dir")
@pytest.mark.parametrize("name", ["puna", "puna-responses"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_library_answers_so_too(said: str, name: str, stream: bool) -> None:
    answer = llm.get_model(name).prompt("hello llama", temperature=0, max_tokens=12, stream=stream)
    assert answer.text() == said
