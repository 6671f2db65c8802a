"""A token's logits have the same bits for every instruction path, type of cache and kind of sums, whoever sits beside
it and however its text is cut up; and those of AVX-512 are those of AVX2, in each of these pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from puna.kernels.batch import KVConfig
from puna.kernels.cpu import NativeInterpreter, paths
from puna.models.load import LoadedModel, load_model
from tests.kernels.steps import F32, step
from tests.kernels.test_threads import assert_same_bits, mixed_steps, run
from tests.tiny import write_tiny_llama

CACHES = ("f32", "bf16", "f16", "int8")
HEADS = {"wide": 32, "odd": 48}  # a bf16 cache of the wide ones is attended on tiles, where there are some
LENGTH, CHUNKS = 75, (1, 16, 3, 33, 21, 1)


@pytest.fixture(scope="module", params=HEADS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    types = {"token_embd": "F16", "ffn_down": "Q4_0", "attn_q": "BF16", "attn_k": "F32", "attn_v": "Q8_0", "": "Q4_1"}
    path: Path = tmp_path_factory.mktemp("heads") / "tiny.gguf"
    sizes = {"width": 96, "ffn": 160, "heads": 4, "kv_heads": 2, "head_dim": HEADS[request.param]}
    return load_model(write_tiny_llama(path, types=types, tied=False, **sizes))


def interpreter(model: LoadedModel, isa: str, cache: str, compute: str, threads: int = 2) -> NativeInterpreter:
    kv = KVConfig(num_blocks=40, block_size=16, dtype=cache)
    return NativeInterpreter(model.program, model.weights, kv, isa=isa, threads=threads, compute=compute)


def logits(native: NativeInterpreter, *sequences: tuple[list[int], int, range]) -> F32:
    found = native.step(step(sequences)).logits
    assert found is not None
    return found


@pytest.mark.skipif(not {"avx2", "avx512"} <= set(paths()), reason="needs a processor with both")
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("compute", ["int8", "float32"])
def test_avx2_and_avx512_give_the_same_bits_with_every_cache(model: LoadedModel, cache: str, compute: str) -> None:
    outs = [run(interpreter(model, isa, cache, compute), mixed_steps(5)) for isa in ("avx2", "avx512")]
    assert_same_bits(*outs)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("compute", ["int8", "float32"])
def test_company_and_chunks_change_no_bit_with_any_cache(
    model: LoadedModel, isa: str, cache: str, compute: str
) -> None:
    ids, others = (np.random.default_rng(seed).integers(0, 300, LENGTH).tolist() for seed in (8, 9))
    table, theirs = range(1, 6), [range(6, 11), range(11, 16)]
    wanted = logits(interpreter(model, isa, cache, compute, threads=1), (ids, 0, table))
    native = interpreter(model, isa, cache, compute, threads=3)
    crowd = logits(native, (others, 0, theirs[0]), (ids, 0, table), (others[:40], 0, theirs[1]))
    np.testing.assert_array_equal(crowd[LENGTH : 2 * LENGTH], wanted)
    done, pieces = 0, []
    for count in CHUNKS:  # each beside one token of somebody else's
        part = logits(native, (others[done : done + 1], done, theirs[0]), (ids[done : done + count], done, table))
        pieces.append(part[1:])
        done += count
    np.testing.assert_array_equal(np.concatenate(pieces), wanted)
