"""One server with the real model, for clients that other projects make.

A client that is not installed is skipped, unless PUNA_ALL_CLIENTS says that all have to be there.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.server.process import ServerProcess


def client_library(name: str) -> ModuleType:
    """The module; the test module that asks is skipped where there is none."""
    if os.environ.get("PUNA_ALL_CLIENTS"):
        return importlib.import_module(name)
    module: ModuleType = pytest.importorskip(name)
    return module


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    running = ServerProcess.start("smollm2", "--max-model-len", "2048", "--api-key", "secret")
    yield running
    running.kill()


@pytest.fixture(scope="session")
def said(server: ServerProcess) -> str:
    """What the model says to "hello llama", greedily, in 12 tokens."""
    body = {"messages": [{"role": "user", "content": "hello llama"}], "max_tokens": 12, "temperature": 0}
    answer = server.post("/v1/chat/completions", body, authorization="Bearer secret").json()
    return str(answer["choices"][0]["message"]["content"])
