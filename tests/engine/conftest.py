"""Engines on a tiny random model, on every backend that can be imported here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from puna.engine.config import EngineConfig
from puna.engine.core import Engine
from tests.tiny import write_tiny_llama

HAS_NATIVE = importlib.util.find_spec("puna.kernels.cpu._native") is not None
native = pytest.mark.skipif(not HAS_NATIVE, reason="the native core is not built")

EngineMaker = Callable[..., Engine]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose answers vary: its output matrix is not its embedding."""
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", tied=False, types="Q8_0")


@pytest.fixture(params=["reference", pytest.param("cpu", marks=native)])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_config(tiny: Path, backend: str) -> Callable[..., EngineConfig]:
    def make(**options: Any) -> EngineConfig:
        kv_dtype = "bf16" if backend == "cpu" else "f32"  # rounding would magnify what NumPy does to the order of sums
        defaults = {"backend": backend, "kv_dtype": kv_dtype, "kv_bytes": 1 << 20, "max_seqs": 8, "budget_tokens": 64}
        return EngineConfig(model=str(tiny), **(defaults | options))

    return make


@pytest.fixture
def make_engine(make_config: Callable[..., EngineConfig]) -> Iterator[EngineMaker]:
    """Engines that are checked for leaks when the test is over."""
    made: list[Engine] = []

    def make(**options: Any) -> Engine:
        made.append(Engine(make_config(**options)))
        return made[-1]

    yield make
    for engine in made:
        engine.close()
        stats = engine.scheduler.stats()
        assert (stats.blocks_used, stats.tier_used, stats.waiting, stats.running) == (0, 0, 0, 0)
