"""Tiny random models in files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import write_tiny_llama


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="session")
def patient_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With room for an answer of some seconds."""
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "patient.gguf", context=16384)
