"""A tiny model in a file, and the small real one for tests that are marked `model`."""

from __future__ import annotations

from pathlib import Path

import pytest

from puna.models.load import LoadedModel, load_model
from puna.models.names import resolve
from tests.tiny import write_tiny_llama


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> LoadedModel:
    return load_model(tiny_path)


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    """SmolLM2-135M-Instruct, pulled on first use."""
    return load_model(resolve("smollm2"))
