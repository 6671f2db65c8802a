"""A fault in one sequence's own numbers ends that sequence; thousands of requests leave nothing behind."""

from __future__ import annotations

import gc
import resource
from pathlib import Path

import numpy as np
import pytest

from puna.engine.config import EngineConfig
from puna.engine.core import Engine
from puna.models.gguf import read_gguf
from tests.engine.conftest import native
from tests.engine.driving import finish, prompt, request
from tests.tiny import write_tiny_llama

POISON = 299


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose embedding of token 299 is not a number, as a damaged file would have it."""
    path = write_tiny_llama(tmp_path_factory.mktemp("poisoned") / "model.gguf", tied=False, types="F32")
    embedding = read_gguf(path).tensors["token_embd.weight"]
    rows = bytes(embedding.data)
    width = len(rows) // embedding.shape[0]
    content = path.read_bytes()
    at = content.index(rows) + POISON * width
    path.write_bytes(content[:at] + np.full(width // 4, np.nan, np.float32).tobytes() + content[at + width :])
    return path


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=native)])
def test_logits_that_are_not_numbers_end_their_own_sample_and_no_other(poisoned: Path, backend: str) -> None:
    def answers(*prompts: list[int]) -> dict[tuple[str, int], object]:
        engine = Engine(EngineConfig(model=str(poisoned), backend=backend, kv_bytes=1 << 20, max_seqs=8))
        for i, one in enumerate(prompts):
            bias = {POISON: -100.0}
            engine.add(request(f"r{i}", one, ignore_eos=True, max_tokens=20, logit_bias=bias, temperature=0))
        found = finish(engine)
        assert engine.scheduler.stats().blocks_used == 0
        return found

    good = [[*prompt(20, 1)[:19], 5], prompt(33, 2)]
    good = [[token if token != POISON else 5 for token in one] for one in good]
    wanted = answers(*good)
    bad = [*good[0][:10], POISON, *good[0][10:]]
    found = answers(good[0], good[1], bad)
    assert found["r0", 0].tokens == wanted["r0", 0].tokens
    assert found["r1", 0].tokens == wanted["r1", 0].tokens
    assert found["r2", 0].finish_reason == "error"
    assert "not numbers" in found["r2", 0].error
    assert found["r2", 0].tokens == []


@native
def test_ten_thousand_requests_with_aborts_leave_no_block_and_flat_memory(tiny: Path) -> None:
    config = EngineConfig(model=str(tiny), kv_bytes=1 << 20, max_seqs=64, max_model_len=128, swap_bytes=1 << 18)
    engine = Engine(config)
    random = np.random.default_rng(0)
    peaks = []
    ended = dict.fromkeys(("stop", "length", "aborted"), 0)
    for wave in range(10):
        waiting = [
            request(
                f"{wave}-{i}",
                random.integers(3, 300, random.integers(1, 60)).tolist(),
                n=int(random.integers(1, 4)) if i % 10 == 0 else 1,
                max_tokens=int(random.integers(1, 12)),
                seed=i,
                logprobs=None,
            )
            for i in range(1000)
        ]
        while waiting or engine.has_work:
            while waiting and len(engine.live_requests) < 120:
                engine.add(waiting.pop())
            if random.random() < 0.5 and engine.live_requests:
                live = engine.live_requests
                engine.abort(live[int(random.integers(len(live)))])
                ended["aborted"] += 1
            for update in engine.step():
                if update.finish_reason is not None:
                    ended[update.finish_reason] += 1
        assert engine.scheduler.stats().blocks_used == 0
        gc.collect()
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    engine.scheduler.check_invariants()
    assert min(ended.values()) > 100, ended
    assert engine.counters.requests == 10_000
    assert peaks[-1] - peaks[2] < 8192, f"peak memory in KiB after each thousand requests: {peaks}"
    engine.close()
