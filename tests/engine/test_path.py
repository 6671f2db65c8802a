"""Which instruction path an engine takes."""

from __future__ import annotations

import pytest

from puna.engine.backend import path_for
from puna.engine.config import EngineConfig

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
