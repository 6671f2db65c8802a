"""A mixture of experts through the whole engine: a file, a crowd, and what is counted before it is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from puna.engine.backend import settle_cache
from puna.engine.config import EngineConfig
from puna.engine.core import Engine
from puna.engine.limits import MemoryLimit
from puna.engine.memory import plan_memory
from puna.kernels.cpu import paths
from puna.models.load import load_model
from tests.engine.conftest import EngineMaker
from tests.engine.driving import assert_same, finish, prompt, request, run
from tests.kernels.steps import step
from tests.tiny import write_tiny_llama

TYPES = {"gate_exps": "Q4_1", "up_exps": "Q8_0", "down_exps": "Q4_0", "attn": "F16", "": "F32"}
LENGTHS = (1, 5, 33, 60, 90)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixture") / "tiny.gguf"
    return write_tiny_llama(path, tied=False, types=TYPES, width=96, ffn=160, experts=6)


def test_a_request_to_a_mixture_gets_the_same_tokens_alone_and_in_a_crowd(make_engine: EngineMaker) -> None:
    crowd = [request(f"r{i}", prompt(n, i), seed=i) for i, n in enumerate(LENGTHS)]
    together, apart = make_engine(), make_engine(prefix_cache=False, budget_tokens=256)
    found = run(together, *crowd)
    for one in crowd:
        for key, sample in run(apart, one).items():
            assert_same(found[key], sample, exact=together.backend.interpreter.batch_invariant)


@pytest.mark.parametrize("isa", paths())
def test_native_experts_choose_the_tokens_that_numpy_chooses(tiny: Path, isa: str) -> None:
    config = EngineConfig(
        model=str(tiny), kv_dtype="f32", kv_bytes=1 << 20, max_seqs=4, budget_tokens=64, isa=isa, compute="float32"
    )
    crowd = [request(f"r{i}", prompt(n, i), temperature=0.0) for i, n in enumerate(LENGTHS)]
    found = []
    for backend in ("cpu", "reference"):
        engine = Engine(EngineConfig(**{**_fields(config), "backend": backend}))
        for one in crowd:
            engine.add(one)
        found.append({key: sample.tokens for key, sample in finish(engine).items()})
        engine.close()
    assert found[0] == found[1]
    assert len({tuple(tokens) for tokens in found[0].values()}) == len(LENGTHS)


def _fields(config: EngineConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in EngineConfig.__struct_fields__}


@pytest.mark.parametrize("isa", paths())
@pytest.mark.parametrize("compute", ["int8", "float32"])
def test_a_mixture_takes_no_more_than_its_account_says(tiny: Path, isa: str, compute: str) -> None:
    from puna.engine.backend import build_interpreter

    config = settle_cache(
        EngineConfig(model=str(tiny), isa=isa, compute=compute, budget_tokens=64, kv_bytes=1 << 20)  # type: ignore[arg-type]
    )
    model = load_model(tiny)
    plan = plan_memory(config, model.program, model.weights, 256, [MemoryLimit("test box", 1 << 30, 1 << 30)])
    rows = {row.name: row.bytes for row in plan.rows}
    native = build_interpreter(config, model, plan.kv, None)
    native.step(step([(range(64), 0, [1, 2, 3, 4])]))
    assert native.packed_bytes <= 1.05 * rows["weights"]  # type: ignore[attr-defined]
    widths = sum(width for name, width in model.program.buffers.items() if name != "logits")
    others = 4 * (64 * widths + 256 * model.program.vocab_size + config.max_seqs * plan.max_model_len)
    assert 0 < native.experts_scratch_bytes <= rows["working space"] - others  # type: ignore[attr-defined]
