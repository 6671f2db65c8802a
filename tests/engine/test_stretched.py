"""Rotary rules that depend on how long texts may get are settled by the engine's own limit, and a replay knows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from puna.engine.config import EngineConfig
from puna.engine.core import Engine
from puna.engine.replay import replay
from puna.errors import InputError
from puna.kernels.program import Rope
from puna.models.load import load_model
from tests.engine.conftest import native
from tests.engine.driving import prompt, request, run
from tests.models.demanded import CONTEXT, write_family_folder

ORIGINAL = "original_max_position_embeddings"
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + i for i in range(8)],
    ORIGINAL: CONTEXT // 2,
}
YARN = {"rope_type": "yarn", "factor": 4.0, ORIGINAL: CONTEXT}

Opener = Callable[..., Engine]


@pytest.fixture
def opened(tmp_path: Path, backend: str, request: pytest.FixtureRequest) -> Opener:
    """Engines on a small folder with the rule that is given."""

    def make(rule: dict[str, Any] | None, **options: Any) -> Engine:
        folder = write_family_folder(tmp_path / "model", "llama")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"rope_parameters": rule}))
        defaults = {"backend": backend, "kv_bytes": 1 << 20, "max_seqs": 2, "budget_tokens": 32, "threads": 1}
        engine = Engine(EngineConfig(model=str(folder), **(defaults | options)))
        request.addfinalizer(engine.close)
        return engine

    return make


def frequencies(engine: Engine) -> tuple[float, ...]:
    return next(op.inv_freq for op in engine.backend.model.program.body if isinstance(op, Rope))


@pytest.mark.parametrize(("rule", "lengths"), [(DYNAMIC, (64, 100, 256)), (LONGROPE, (32, 64))])
def test_the_longest_text_settles_the_rule(opened: Opener, rule: dict[str, Any], lengths: tuple[int, ...]) -> None:
    found = {length: opened(rule, max_model_len=length) for length in lengths}
    turned = {length: frequencies(engine) for length, engine in found.items()}
    assert len(set(turned.values())) == len(lengths)
    assert len({engine.backend.interpreter.fingerprint for engine in found.values()}) == len(lengths)
    for length, inv_freq in turned.items():
        model = load_model(found[length].config.model, length=length)
        assert inv_freq == model.spec.layers[0].attention.rope.inverse_frequencies()  # type: ignore[union-attr]


@pytest.mark.parametrize("rule", [DYNAMIC, LONGROPE, YARN])
def test_without_a_limit_the_models_own_context_settles_it(opened: Opener, rule: dict[str, Any]) -> None:
    free, told = opened(rule), opened(rule, max_model_len=CONTEXT)
    assert free.max_model_len == CONTEXT
    assert frequencies(free) == frequencies(told)


def test_a_pool_too_small_for_the_context_settles_it_by_what_it_holds(opened: Opener) -> None:
    block = opened(LONGROPE).backend.memory.rows[2].bytes // opened(LONGROPE).backend.memory.kv.num_blocks
    small = opened(LONGROPE, kv_bytes=3 * block)
    assert small.max_model_len == CONTEXT // 2
    assert frequencies(small) == frequencies(opened(LONGROPE, max_model_len=CONTEXT // 2))
    assert frequencies(small) != frequencies(opened(LONGROPE))


@pytest.mark.parametrize("rule", [DYNAMIC, YARN])
def test_a_model_runs_as_long_as_its_rule_reaches_and_no_longer(opened: Opener, rule: dict[str, Any]) -> None:
    engine = opened(rule, max_model_len=4 * CONTEXT)
    sample = run(engine, request("r", prompt(3 * CONTEXT, 1), max_tokens=8, ignore_eos=True))["r", 0]
    assert len(sample.tokens) == 8
    with pytest.raises(InputError, match=r"made for 64 tokens and can be stretched to 256; use 256 or less"):
        opened(rule, max_model_len=4 * CONTEXT + 1)


@native
@pytest.mark.parametrize("backend", ["cpu"])
@pytest.mark.parametrize("rule", [DYNAMIC, LONGROPE])
def test_a_replay_turns_as_the_engine_did(opened: Opener, tmp_path: Path, rule: dict[str, Any]) -> None:
    length = 48 if rule is LONGROPE else 128
    engine = opened(rule, max_model_len=length, record=str(tmp_path / "run.record"))
    run(engine, request("r", prompt(40, 1), max_tokens=8))
    engine.close()
    report = replay(tmp_path / "run.record")
    assert report.exact
    assert report.same_fingerprint
