"""One server with a tiny random model for all tests that only ask; tests that break theirs start their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.server.process import ServerProcess
from tests.tiny import write_tiny_llama


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="session")
def patient_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As tiny, with room for an answer of some seconds: for tests of what happens in the middle of one."""
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "patient.gguf", context=16384)


@pytest.fixture(scope="session")
def server(tiny_model: Path) -> Iterator[ServerProcess]:
    running = ServerProcess.start(str(tiny_model), "--name", "tiny", "--backend", "reference", "--max-body-mb", "1")
    yield running
    running.kill()


@pytest.fixture(scope="session")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as opened:
        yield opened
