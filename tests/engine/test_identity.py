"""A request gets the same tokens whoever sits beside it and however its work is cut up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.engine.core import Engine
from puna.engine.params import EngineRequest
from tests.engine.conftest import EngineMaker, native
from tests.engine.driving import Samples, assert_same, finish, prompt, request, run
from tests.tiny import write_tiny_llama

LENGTHS = (1, 5, 16, 17, 33, 60, 90)
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.0},
    {"top_k": 20, "top_p": 0.9},
    {"min_p": 0.02, "temperature": 3.0},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.2},
    {"logit_bias": {5: 4.0, 9: -100.0}, "min_tokens": 4},
    {"allowed_token_ids": [7, 8, 9, 10, 11], "bad_word_ids": [[7, 8], [9]]},
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wider than in other tests, for sums of three and five groups: two groups add up to the same in either order."""
    path = tmp_path_factory.mktemp("wider") / "tiny.gguf"
    return write_tiny_llama(path, tied=False, types="Q8_0", width=96, ffn=160)


def crowd() -> list[EngineRequest]:
    return [request(f"r{i}", prompt(n, i), seed=i, **KINDS[i % len(KINDS)]) for i, n in enumerate(LENGTHS)]


def alone(engine: Engine) -> Samples:
    found: Samples = {}
    for one in crowd():
        found |= run(engine, one)
    return found


@pytest.fixture
def wanted(make_engine: EngineMaker) -> Samples:
    return alone(make_engine(prefix_cache=False, budget_tokens=256))


def assert_all_same(engine: Engine, found: Samples, wanted: Samples) -> None:
    exact = engine.backend.interpreter.batch_invariant
    for key, sample in found.items():
        assert_same(sample, wanted[key], exact=exact)


def test_a_request_gets_the_same_tokens_alone_and_in_a_crowd(make_engine: EngineMaker, wanted: Samples) -> None:
    engine = make_engine()
    assert_all_same(engine, run(engine, *crowd()), wanted)


@pytest.mark.parametrize("budget", [1, 3, 16, 50])
def test_the_size_of_chunks_changes_nothing(make_engine: EngineMaker, wanted: Samples, budget: int) -> None:
    engine = make_engine(budget_tokens=budget)
    assert_all_same(engine, run(engine, *crowd()), wanted)


@pytest.mark.parametrize("size", range(3))
def test_the_size_of_blocks_changes_nothing(make_engine: EngineMaker, wanted: Samples, backend: str, size: int) -> None:
    sizes = {"reference": (1, 4, 32), "cpu": (32, 64, 128)}
    engine = make_engine(block_size=sizes[backend][size])
    assert_all_same(engine, run(engine, *crowd()), wanted)


@native
@pytest.mark.parametrize("backend", ["cpu"])
@pytest.mark.parametrize("cache", ["f32", "bf16", "f16", "int8"])
def test_a_crowd_in_small_chunks_changes_nothing_on_any_path_with_any_cache(
    make_engine: EngineMaker, cache: str
) -> None:
    from puna.kernels.cpu import paths

    found: dict[str, Samples] = {}
    for isa in paths():
        options = {"isa": isa, "kv_dtype": cache}
        wanted = alone(make_engine(prefix_cache=False, budget_tokens=256, **options))
        engine = make_engine(budget_tokens=16, **options)
        found[isa] = run(engine, *crowd())
        assert_all_same(engine, found[isa], wanted)
    if {"avx2", "avx512"} <= found.keys():
        for key, sample in found["avx512"].items():
            assert_same(sample, found["avx2"][key], exact=True)


@native
@pytest.mark.parametrize("backend", ["cpu"])
def test_sums_that_depend_on_the_batch_would_be_noticed(make_engine: EngineMaker, wanted: Samples) -> None:
    engine = make_engine()
    engine.backend.interpreter.break_batch_invariance(True)  # type: ignore[attr-defined]
    with pytest.raises(AssertionError):
        assert_all_same(engine, run(engine, *crowd()), wanted)


def test_a_prefix_hit_changes_nothing_but_the_work(make_engine: EngineMaker, wanted: Samples) -> None:
    engine = make_engine()
    run(engine, *crowd())
    computed = engine.counters.computed_tokens
    again = run(engine, *crowd())
    assert_all_same(engine, again, wanted)
    assert again["r6", 0].cached_tokens == 80  # 90 tokens: 5 whole blocks of 16
    assert engine.counters.computed_tokens - computed < computed - 100


@pytest.mark.parametrize("swap_bytes", [0, 1 << 20])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_being_preempted_changes_nothing(
    make_engine: EngineMaker, wanted: Samples, swap_bytes: int, policy: str
) -> None:
    probe = make_engine()
    block_bytes = probe.config.kv_bytes // probe.backend.memory.kv.num_blocks
    longest = max(LENGTHS) + 12
    engine = make_engine(kv_bytes=block_bytes * 9, max_model_len=longest, swap_bytes=swap_bytes, policy=policy)
    found = run(engine, *crowd())
    assert engine.scheduler.stats().preemptions > 0
    assert_all_same(engine, found, wanted)


def test_arriving_in_the_middle_changes_nothing(make_engine: EngineMaker, wanted: Samples) -> None:
    engine = make_engine(budget_tokens=20)
    found: Samples = {}
    for one in crowd():
        engine.add(one)
        finish(engine, found, steps=2)
    assert_all_same(engine, finish(engine, found), wanted)


@pytest.mark.parametrize("seed", [0, 41, 2**64 - 2, -3])
def test_sample_i_of_n_is_what_a_single_request_with_seed_plus_i_gets(make_engine: EngineMaker, seed: int) -> None:
    engine = make_engine(prefix_cache=False)
    shared = run(engine, request("n", prompt(21, 7), n=4, seed=seed, temperature=2.0))
    assert len({tuple(sample.tokens) for sample in shared.values()}) == 4
    for i in range(4):
        wrapped = (seed + i) % 2**64
        single = run(engine, request("one", prompt(21, 7), seed=wrapped, temperature=2.0))
        assert_same(shared["n", i], single["one", 0], exact=engine.backend.interpreter.batch_invariant)


def test_n_samples_compute_their_prompt_once(make_engine: EngineMaker) -> None:
    engine = make_engine(prefix_cache=False)
    run(engine, request("n", prompt(40, 1), n=4, max_tokens=5, ignore_eos=True))
    assert engine.counters.computed_tokens == 40 + 4 * 4


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_a_sample_that_is_resumed_goes_on_where_it_stopped(make_engine: EngineMaker, kind: int) -> None:
    engine = make_engine()
    whole = run(engine, request("w", prompt(19, 3), seed=5, **KINDS[kind]))["w", 0]
    for done in range(1, len(whole.tokens) + 1):
        delivered = [whole.tokens[:done]]
        rest = run(engine, request("w", prompt(19, 3), seed=5, delivered=delivered, **KINDS[kind]))["w", 0]
        assert delivered[0] + rest.tokens == whole.tokens
        assert rest.finish_reason == whole.finish_reason
        assert rest.cached_tokens is None


def test_samples_of_one_request_are_resumed_each_at_its_own_place(make_engine: EngineMaker) -> None:
    engine = make_engine()
    whole = run(engine, request("w", prompt(19, 3), n=3, seed=9))
    delivered = [whole["w", 0].tokens[:4], [], whole["w", 2].tokens]
    rest = run(engine, request("w", prompt(19, 3), n=3, seed=9, delivered=delivered))
    for i in range(3):
        assert delivered[i] + rest["w", i].tokens == whole["w", i].tokens
        assert rest["w", i].finish_reason == whole["w", i].finish_reason


@pytest.mark.parametrize("seed", range(6))
def test_random_crowds_in_tight_memory_get_what_each_gets_alone(make_engine: EngineMaker, seed: int) -> None:
    random = np.random.default_rng(seed)
    shared = prompt(48, 99)
    requests = [
        request(
            f"q{i}",
            shared[: int(random.integers(0, 49))] + prompt(int(random.integers(1, 20)), 1000 * seed + i),
            seed=i,
            n=int(random.integers(1, 4)),
            max_tokens=int(random.integers(4, 25)),
            priority=int(random.integers(0, 3)),
            **KINDS[int(random.integers(len(KINDS)))],
        )
        for i in range(12)
    ]
    lone = make_engine(prefix_cache=False, budget_tokens=256)
    wanted: Samples = {}
    for one in requests:
        wanted |= run(lone, one)
    block_bytes = lone.config.kv_bytes // lone.backend.memory.kv.num_blocks
    engine = make_engine(
        kv_bytes=block_bytes * 12,
        max_model_len=128,
        budget_tokens=int(random.integers(2, 40)),
        swap_bytes=int(random.integers(0, 2)) * (1 << 18),
        policy=("fcfs", "priority")[seed % 2],
        max_seqs=4,
    )
    found: Samples = {}
    for one in requests:
        engine.add(one)
        finish(engine, found, steps=int(random.integers(0, 4)))
    finish(engine, found)
    assert found.keys() == wanted.keys()
    assert_all_same(engine, found, wanted)
