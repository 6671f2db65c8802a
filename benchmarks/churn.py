"""Ten thousand requests, one in twenty aborted, through one engine: no block may stay in use, memory must stay flat.

    python benchmarks/churn.py [MODEL] [REQUESTS]

The same promise is tested with a tiny model; this runs it on a real one and prints resident memory as it goes.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from puna.engine.config import EngineConfig
from puna.engine.core import Engine
from puna.engine.params import EngineRequest, SamplingParams
from puna.models.names import resolve


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def main(model: str = "smollm2", count: str = "10000") -> None:
    config = EngineConfig(model=str(resolve(model)), kv_bytes=256 << 20, max_seqs=64, max_model_len=1024)
    engine = Engine(config)
    vocab = engine.backend.model.program.vocab_size
    random = np.random.default_rng(0)
    added, total, begun = 0, int(count), time.monotonic()
    aborted = 0
    shown = 0
    while added < total or engine.has_work:
        while added < total and len(engine.live_requests) < 96:
            prompt = random.integers(0, vocab, random.integers(1, 24)).tolist()
            params = SamplingParams(max_tokens=int(random.integers(1, 10)), seed=added)
            engine.add(EngineRequest(request_id=str(added), prompt_token_ids=prompt, params=params))
            added += 1
            if added % 20 == 0:
                live = engine.live_requests
                engine.abort(live[int(random.integers(len(live)))])
                aborted += 1
        engine.step()
        if added // 1000 > shown:
            shown = added // 1000
            print(f"{added} requests, {time.monotonic() - begun:.0f} s, {resident_mb():.0f} MiB resident", flush=True)
    stats = engine.scheduler.stats()
    print(f"{aborted} aborted; {stats.blocks_used} blocks in use, {resident_mb():.0f} MiB resident")
    engine.scheduler.check_invariants()
    assert stats.blocks_used == 0


if __name__ == "__main__":
    main(*sys.argv[1:])
