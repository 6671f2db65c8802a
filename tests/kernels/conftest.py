"""Instruction paths of this machine, and models to run on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from puna.kernels.cpu import paths
from puna.models.load import LoadedModel, load_model
from puna.models.names import resolve
from tests.tiny import write_tiny_llama


@pytest.fixture(params=paths())
def isa(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Four element types in one model, widths of several groups."""
    types = {"token_embd": "Q8_0", "ffn_down": "Q4_0", "attn_q": "F16", "": "Q4_1"}
    path: Path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    return load_model(write_tiny_llama(path, types=types, tied=False))


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    """SmolLM2-135M-Instruct, pulled on first use."""
    return load_model(resolve("smollm2"))
