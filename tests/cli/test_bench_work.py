"""What kernels are measured against: bytes and operations, counted from the program by hand here."""

from __future__ import annotations

from pathlib import Path

import pytest

from puna.bench.steps import StepShape
from puna.bench.work import work_of
from puna.engine.config import EngineConfig
from puna.kernels.batch import KVConfig, kv_bytes_per_block
from puna.kernels.program import Attend, StoreKV
from puna.models.load import load_model


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
