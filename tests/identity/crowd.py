"""A crowd of mixed requests, and the ways in which its work can be cut up, shared, interrupted and put back.

Each way gives every sample's tokens and log-probabilities; each must be what the sample gets alone. A way checks for
itself that what it is named after did happen. Knows engines by their options; does not know which backend runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from puna.engine.backend import settle_cache
from puna.engine.config import EngineConfig
from puna.engine.core import Engine
from puna.engine.params import EngineRequest, SamplingParams
from puna.kernels.batch import KVConfig, kv_bytes_per_block
from puna.models.load import load_model
from tests.engine.driving import Sample, Samples, finish, run

EngineMaker = Callable[..., Engine]
KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {},
    {"top_k": 20, "top_p": 0.9, "temperature": 1.5},
    {"min_p": 0.02, "temperature": 2.0},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.2, "temperature": 0.0},
    {"logit_bias": {5: 4.0, 9: -100.0}, "min_tokens": 3},
    {"allowed_token_ids": [7, 8, 9, 10, 11, 12, 40], "top_p": 0.8},
    {"repetition_penalty": 0.9, "presence_penalty": -0.3, "top_k": 50},
)
COUNT = 64


@dataclass(frozen=True)
class Crowd:
    """A model and what is asked of it. `longest`: tokens of the longest sequence."""

    path: Path
    requests: tuple[EngineRequest, ...]
    longest: int
    block_bytes: int

    def first(self, count: int) -> Crowd:
        return replace(self, requests=self.requests[:count])


def crowd_of(path: Path, prompt_lengths: tuple[int, ...], output_lengths: tuple[int, ...], shared_len: int) -> Crowd:
    """64 requests: greedy and sampled, short and long, with penalties and lists, every one with log-probabilities.

    Every fourth prompt begins with the same `shared_len` tokens, which come before its own.
    """
    model = load_model(path)
    random = np.random.default_rng(17)
    vocab = min(model.program.vocab_size, 2000)
    shared = random.integers(3, vocab, shared_len).tolist()
    requests = []
    for i in range(COUNT):
        own = random.integers(3, vocab, prompt_lengths[i % len(prompt_lengths)]).tolist()
        length, kind = output_lengths[i % len(output_lengths)], dict(KINDS[i % len(KINDS)])
        kind["min_tokens"] = min(length, kind.get("min_tokens", 0))
        params = SamplingParams(seed=1000 + i, max_tokens=length, logprobs=i % 3, **kind)
        requests.append(
            EngineRequest(
                request_id=f"r{i}",
                prompt_token_ids=(shared if i % 4 == 0 else []) + own,
                params=params,
                eos_token_ids=list(model.tokenizer.eos_ids),
                priority=i % 3,
            )
        )
    longest = max(len(r.prompt_token_ids) + (r.params.max_tokens or 0) for r in requests)
    kv = KVConfig(1, dtype=settle_cache(EngineConfig()).kv_dtype)
    return Crowd(path, tuple(requests), longest, kv_bytes_per_block(model.program, kv))


def alone(make: EngineMaker, requests: tuple[EngineRequest, ...]) -> Samples:
    """Every sample as a request of its own, one after the other, its prompt in one piece and nothing remembered."""
    engine = make(prefix_cache=False, budget_tokens=256)
    found: Samples = {}
    for request in requests:
        for i in range(request.params.n):
            params = msgspec.structs.replace(request.params, n=1, seed=(request.params.seed or 0) + i)
            single = run(engine, msgspec.structs.replace(request, params=params))
            found[request.request_id, i] = single[request.request_id, 0]
    return found


def differing(found: Samples, wanted: Samples) -> list[tuple[str, int]]:
    """Samples that are not the same to the last bit of their log-probabilities."""
    assert found.keys() == wanted.keys()

    def bits(sample: Sample) -> tuple[Any, ...]:
        assert sample.tokens
        assert len(sample.logprobs) == len(sample.tokens)
        return sample.tokens, sample.finish_reason, sample.logprobs

    return [key for key in wanted if bits(found[key]) != bits(wanted[key])]


def together(make: EngineMaker, crowd: Crowd) -> Samples:
    return run(make(), *crowd.requests)


def in_small_chunks(make: EngineMaker, crowd: Crowd) -> Samples:
    return run(make(budget_tokens=7), *crowd.requests)


def in_large_chunks(make: EngineMaker, crowd: Crowd) -> Samples:
    return run(make(budget_tokens=50), *crowd.requests)


def with_prefix_hits(make: EngineMaker, crowd: Crowd) -> Samples:
    engine = make()
    run(engine, *crowd.requests)
    before = engine.scheduler.stats().prefix_hits
    found = run(engine, *crowd.requests)
    assert engine.scheduler.stats().prefix_hits > before
    assert any(sample.cached_tokens for sample in found.values())
    return found


def recomputed(make: EngineMaker, crowd: Crowd) -> Samples:
    return _in_tight_memory(make, crowd, room=3, budget_tokens=64, prefix_cache=False)


def swapped(make: EngineMaker, crowd: Crowd) -> Samples:
    return _in_tight_memory(make, crowd, room=1, swap_bytes=64 * crowd.block_bytes, policy="priority")


def _in_tight_memory(make: EngineMaker, crowd: Crowd, room: int, **options: Any) -> Samples:
    """With blocks for `room` of the longest sequences and two more (one is the null block)."""
    blocks = -(-crowd.longest // 16) * room + 2
    engine = make(kv_bytes=blocks * crowd.block_bytes, max_model_len=crowd.longest, **options)
    found = run(engine, *crowd.requests)
    assert engine.scheduler.stats().preemptions > 0
    return found


def arriving_one_by_one(make: EngineMaker, crowd: Crowd) -> Samples:
    engine = make(budget_tokens=40)
    found: Samples = {}
    for request in crowd.requests:
        engine.add(request)
        finish(engine, found, steps=1)
    return finish(engine, found)


def on_one_thread(make: EngineMaker, crowd: Crowd) -> Samples:
    return run(make(threads=1), *crowd.requests)


def on_two_threads(make: EngineMaker, crowd: Crowd) -> Samples:
    return run(make(threads=2), *crowd.requests)


def forked(make: EngineMaker, crowd: Crowd) -> Samples:
    """n samples of one prompt, which is computed once and then shared."""
    return run(make(), *with_samples(crowd).requests)


def with_samples(crowd: Crowd) -> Crowd:
    """Every fourth request of the crowd, asking for three samples."""
    requests = tuple(
        msgspec.structs.replace(r, params=msgspec.structs.replace(r.params, n=3)) for r in crowd.requests[1::4]
    )
    return replace(crowd, requests=requests)


WAYS: tuple[Callable[[EngineMaker, Crowd], Samples], ...] = (
    together,
    in_small_chunks,
    in_large_chunks,
    with_prefix_hits,
    recomputed,
    swapped,
    arriving_one_by_one,
    on_one_thread,
    on_two_threads,
    forked,
)
