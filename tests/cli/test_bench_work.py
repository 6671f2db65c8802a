"""What kernels are measured against: bytes and operations, counted from the program by hand here."""

from __future__ import annotations

from pathlib import Path

import pytest

from puna.bench.steps import StepShape
from puna.bench.work import work_of
from puna.engine.config import EngineConfig
from puna.kernels.batch import KVConfig, kv_bytes_per_block
from puna.kernels.program import Attend, Experts, StoreKV, weights_of
from puna.models.load import load_model
from tests.tiny import write_tiny_llama


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "int8"])
def test_attention_reads_what_the_pool_keeps_scales_included(tiny_model: Path, dtype: str) -> None:
    model = load_model(tiny_model)
    config = EngineConfig(model=str(tiny_model), kv_dtype=dtype)  # type: ignore[arg-type]
    kept = kv_bytes_per_block(model.program, KVConfig(1, 16, dtype)) / 16
    body = model.program.body
    reads = work_of([op for op in body if isinstance(op, Attend)], model, config, StepShape(3, 2, 40), 0.0)
    assert reads.moved_bytes == reads.working_bytes == 3 * 42 * kept
    stores = work_of([op for op in body if isinstance(op, StoreKV)], model, config, StepShape(3, 2, 40), 0.0)
    floats = sum(2 * shape.kv_heads * shape.head_dim for shape in model.program.kv) * 4
    assert stores.moved_bytes == 6 * (floats + kept)


def test_int8_keeps_a_float_beside_each_head_of_keys_and_of_values(tiny_model: Path) -> None:
    program = load_model(tiny_model).program
    heads = sum(2 * shape.kv_heads for shape in program.kv)
    numbers = sum(2 * shape.kv_heads * shape.head_dim for shape in program.kv)
    assert kv_bytes_per_block(program, KVConfig(1, 16, "int8")) == 16 * (numbers + 4 * heads)


def test_of_experts_those_are_read_that_even_routing_reaches(tmp_path: Path) -> None:
    """Two of eight experts a token: a quarter of the weights for one, hardly fewer than all for many."""
    model = load_model(write_tiny_llama(tmp_path / "mixture.gguf", experts=8, layers=1))
    config = EngineConfig(model="mixture", compute="float32")
    experts = [op for op in model.program.body if isinstance(op, Experts)]
    one, many = (work_of(experts, model, config, StepShape(1, tokens, 0), 8e6) for tokens in (1, 100))
    assert one.moved_bytes == 8e6 / 4 + 4 * (64 + 8 + 64)
    assert one.operations == 2 * 2 * 3 * 64 * 96
    assert 7.99e6 < many.moved_bytes - 100 * 4 * (64 + 8 + 64) < 8e6
    sizes = {name: 4.0 * model.weights[name].elements for name in model.program.weights()}
    stacks = sum(sizes[name] for name in weights_of(experts[0]))
    body = [op for op in model.program.body if weights_of(op)]
    total = sum(sizes[name] for op in body for name in weights_of(op))
    assert work_of(body, model, config, StepShape(1, 1, 0), total).working_bytes >= total - 0.75 * stacks
