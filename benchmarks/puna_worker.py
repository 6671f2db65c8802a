"""Puna in a process of its own, for peers.py: the same lines in and out as vllm_worker.py.

usage: python puna_worker.py MODEL [KV_MIB]
A line {"memory": true} is answered with what the process holds: resident bytes, packed weights, the pool. Work that is
`alone` goes to an engine of one sequence at a time, as `puna chat` opens it; the next other
line closes it.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import puna
from puna.engine.config import EngineConfig
from puna.engine.core import Engine
from puna.engine.params import EngineRequest, SamplingParams
from puna.kernels.batch import kv_bytes_per_block

NUMBERS = itertools.count()


def main() -> None:
    started = time.perf_counter()
    kv_bytes = int(sys.argv[2]) << 20 if len(sys.argv) > 2 else None
    engine = Engine(EngineConfig(model=sys.argv[1], kv_bytes=kv_bytes))
    say(ready=True, version=puna.__version__, load_s=time.perf_counter() - started)
    single: Engine | None = None
    for line in sys.stdin:
        work = json.loads(line)
        if work.get("alone"):
            single = single or Engine(EngineConfig(model=sys.argv[1], kv_bytes=kv_bytes, max_seqs=1))
            say(seconds=run(single, work))
            continue
        if single is not None:
            single.close()
            single = None
        if work.get("memory"):
            say(**memory(engine))
        else:
            say(seconds=run(engine, work))


def run(engine: Engine, work: dict[str, Any]) -> float:
    greedy = work["temperature"] == 0
    started = time.perf_counter()
    for row, prompt in enumerate(work["prompts"]):
        params = SamplingParams(
            temperature=work["temperature"],
            top_p=1.0 if greedy else work["top_p"],
            seed=work["seed"] + row,
            max_tokens=work["output_len"],
            ignore_eos=True,
        )
        engine.add(EngineRequest(request_id=str(next(NUMBERS)), prompt_token_ids=prompt, params=params))
    tokens = 0
    while engine.has_work:
        tokens += sum(len(update.token_ids) for update in engine.step())
    seconds = time.perf_counter() - started
    if tokens != len(work["prompts"]) * work["output_len"]:
        raise RuntimeError(f"{tokens} tokens came, not {len(work['prompts'])} times {work['output_len']}")
    return seconds


def memory(engine: Engine) -> dict[str, int]:
    backend = engine.backend
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "resident_bytes": int(status["VmRSS"].split()[0]) << 10,
        "packed_bytes": getattr(backend.interpreter, "packed_bytes", 0),
        "block_bytes": kv_bytes_per_block(backend.model.program, backend.memory.kv),
        "block_size": backend.memory.kv.block_size,
        "blocks": backend.memory.kv.num_blocks,
    }


def say(**facts: Any) -> None:
    print("@" + json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
