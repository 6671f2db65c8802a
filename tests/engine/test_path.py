"""Which instruction path an engine takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from puna.engine.backend import open_backend, path_for, settle_cache
from puna.engine.config import EngineConfig
from puna.kernels.cpu import paths
from puna.models.load import load_model
from tests.tiny import write_tiny_llama

TILES = ["amx", "avx512", "avx2", "portable"]


@pytest.mark.parametrize(
    ("paths", "isa", "max_seqs", "wanted"),
    [
        (TILES, "auto", 1, "avx512"),  # one stream waits for the decoding of weights
        (TILES, "auto", 2, "auto"),
        (TILES, "amx", 1, "amx"),  # what is asked for by name is taken
        (["avx512", "avx2", "portable"], "auto", 1, "auto"),
        (["portable"], "auto", 1, "auto"),
    ],
)
def test_one_stream_alone_does_not_decode_into_tiles(paths: list[str], isa: str, max_seqs: int, wanted: str) -> None:
    assert path_for(EngineConfig(model="smollm2", isa=isa, max_seqs=max_seqs), paths) == wanted


@pytest.mark.parametrize(
    ("options", "on_tiles"),
    [
        ({}, "bf16"),
        ({"isa": "portable"}, "f16"),
        ({"max_seqs": 1}, "f16"),  # a path without tiles serves one stream
        ({"compute": "float32"}, "f16"),
        ({"backend": "reference"}, "f16"),
        ({"kv_dtype": "int8"}, "int8"),  # what is asked for is taken
        ({"kv_dtype": "f16"}, "f16"),
    ],
)
def test_the_cache_is_of_the_type_that_attention_is_quickest_with(options: dict[str, Any], on_tiles: str) -> None:
    elsewhere = options.get("kv_dtype", "f16")
    wanted = on_tiles if paths()[0] == "amx" else elsewhere
    assert settle_cache(EngineConfig(model="smollm2", **options)).kv_dtype == wanted


@pytest.mark.parametrize(
    ("types", "wanted"), [({"": "F16"}, "f16"), ({"": "Q4_1", "attn_q": "F16"}, None), ({"": "BF16"}, None)]
)
def test_f16_weights_are_not_robbed_of_their_bits_by_the_cache(
    tmp_path: Path, types: dict[str, str], wanted: str | None
) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", types=types)
    usual = settle_cache(EngineConfig(model=str(path))).kv_dtype
    backend = open_backend(EngineConfig(model=str(path), threads=1))
    assert backend.memory.kv.dtype == (wanted or usual)
    asked = settle_cache(EngineConfig(model=str(path), kv_dtype="bf16"), backend.model)
    assert asked.kv_dtype == "bf16"  # what is asked for is taken


def test_a_checkpoint_that_is_multiplied_as_codes_gets_the_cache_of_codes() -> None:
    """Its values are F16, but only NumPy and float32 sums multiply those."""
    path = Path(__file__).parents[1] / "models" / "data" / "packed" / "autoawq"
    model = load_model(path)
    usual = settle_cache(EngineConfig(model=str(path))).kv_dtype
    assert settle_cache(EngineConfig(model=str(path)), model).kv_dtype == usual
    exact = EngineConfig(model=str(path), compute="float32")
    assert settle_cache(exact, model).kv_dtype == "f16"
