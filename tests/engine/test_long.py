"""Texts of tens of thousands of tokens: the same answers however they are cut up, in steps that know its price."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.engine.config import EngineConfig
from puna.engine.core import Engine
from puna.kernels.batch import KVConfig
from puna.kernels.cpu import NativeInterpreter
from puna.kernels.program import Rope
from puna.kernels.reference.interpreter import ReferenceInterpreter
from puna.models.load import load_model
from tests.engine.conftest import native
from tests.engine.driving import Samples, assert_same, finish, prompt, request, run
from tests.kernels.steps import around, difference, rows, step
from tests.tiny import write_tiny_llama

pytestmark = [native]

LONG, CONTEXT = 40_000, 131_072
SIZES: dict[str, Any] = {"layers": 1, "heads": 1, "kv_heads": 1, "width": 32, "ffn": 32, "context": CONTEXT}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By their windows; 0 sees everything."""
    folder = tmp_path_factory.mktemp("long")
    return {
        window: write_tiny_llama(
            folder / f"{window}.gguf", tied=False, metadata={"llama.attention.sliding_window": window or None}, **SIZES
        )
        for window in (0, 3000)
    }


@pytest.fixture
def opened() -> Iterator[Any]:
    made: list[Engine] = []

    def make(path: Path, **options: Any) -> Engine:
        defaults = {"kv_dtype": "bf16", "kv_bytes": 1 << 24, "max_model_len": LONG + 16, "max_seqs": 2, "threads": 2}
        made.append(Engine(EngineConfig(model=str(path), **(defaults | options))))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def answers(engine: Engine, length: int = LONG) -> Samples:
    return run(engine, request("long", prompt(length, 1), max_tokens=6, ignore_eos=True))


@pytest.mark.parametrize("window", [0, 3000])
def test_forty_thousand_tokens_give_the_same_however_they_are_cut(
    models: dict[int, Path], opened: Any, window: int
) -> None:
    whole = answers(opened(models[window], budget_tokens=LONG))
    cut = answers(opened(models[window], budget_tokens=1777, threads=1))
    assert len(whole["long", 0].tokens) == 6
    assert_same(cut["long", 0], whole["long", 0], exact=True)


@pytest.mark.parametrize("window", [0, 3000])
@pytest.mark.parametrize("swap_bytes", [0, 1 << 24])
def test_being_preempted_behind_a_long_history_changes_nothing(
    models: dict[int, Path], opened: Any, window: int, swap_bytes: int
) -> None:
    """A request that came earlier grows and takes the memory of one whose history is longer than a window."""
    length = 8000
    options = {"max_model_len": length + 64, "budget_tokens": 2048, "prefix_cache": False}
    long = request("long", prompt(length, 1), max_tokens=40, ignore_eos=True)
    lone = opened(models[window], **options)
    whole, memory = run(lone, long), lone.backend.memory
    blocks = (500 + length) // 16 + 4
    kv_bytes = blocks * (memory.rows[2].bytes // memory.kv.num_blocks)
    engine = opened(models[window], kv_bytes=kv_bytes, swap_bytes=swap_bytes, **options)
    engine.add(request("earlier", prompt(500, 2), max_tokens=80, ignore_eos=True))
    engine.add(long)
    found = finish(engine)
    assert engine.scheduler.stats().preemptions > 0
    assert_same(found["long", 0], whole["long", 0], exact=True)


@pytest.mark.parametrize("window", [0, 3000])
@pytest.mark.parametrize("position", [32_760, 131_040])
def test_tokens_far_behind_the_first_are_those_of_numpy(models: dict[int, Path], window: int, position: int) -> None:
    """The history is one block of random keys and values over and over: what is looked at is positions and lengths."""
    model, kv = load_model(models[window]), KVConfig(4, 16, "f32")
    ids = prompt(24, 5)
    table = [1] * (position // 16) + [2, 3]
    found = []
    for interpreter in (
        NativeInterpreter(model.program, model.weights, kv, threads=2, compute="float32"),
        ReferenceInterpreter(model.program, model.weights, kv),
    ):
        interpreter.step(step([(prompt(16, 4), 0, [1])], rows([])))
        start = position // 16 * 16
        out = interpreter.step(step([(ids, start, table)], rows(range(len(ids)))))
        found.append(out.logits)
    assert difference(found[0], found[1]) < 1e-4


def test_the_price_of_history_is_measured_where_texts_can_be_long(models: dict[int, Path], opened: Any) -> None:
    assert opened(models[0]).backend.history_tokens > 0
    assert opened(models[0], max_model_len=512).backend.history_tokens == 0
    assert opened(models[0], budget_tokens=512).backend.history_tokens == 0


@pytest.mark.parametrize("position", [32_767, 99_991, 131_071])
def test_angles_at_the_end_of_long_contexts_are_those_of_float64(position: int) -> None:
    inv_freq = np.array([10_000.0 ** (-i / 8) for i in range(8)], np.float32)
    rope = Rope("x", 1, 16, tuple(map(float, inv_freq)), "halves", 1.0)
    case = around([rope], {"x": np.eye(16, dtype=np.float32)}, {}, out="x")
    core = NativeInterpreter(case.program, case.weights, KVConfig(2), threads=1, compute="float32")
    table = [1] * (position // 16 + 1)
    out = core.step(step([([pair], position, table) for pair in range(8)], rows(range(8))))
    assert out.logits is not None
    angle = position * inv_freq.astype(np.float64)
    pairs = np.arange(8)
    np.testing.assert_allclose(out.logits[pairs, pairs], np.cos(angle), atol=1e-6)
    np.testing.assert_allclose(out.logits[pairs, pairs + 8], np.sin(angle), atol=1e-6)
