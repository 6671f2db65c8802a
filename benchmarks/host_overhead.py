"""What a step costs around the forward pass: scheduling, preparing arrays, delivering tokens, sending them on.

Decodes with N sequences and prints, per phase, the median over the steps of microseconds a step, and the share of the
step that is not the forward pass. The default model is tiny and random, so the host's code stays in the caches; after
the forward pass of a real one (`--model`) nothing of it is, and it costs several times as much. What is sent is what
an engine in a process of its own sends; here it goes into a socket that `cat` reads empty.
Run: python benchmarks/host_overhead.py [--model PATH]
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from puna.engine.config import EngineConfig
from puna.engine.core import Engine
from puna.engine.outbox import Outbox
from puna.engine.params import EngineRequest, SamplingParams
from tests.tiny import write_tiny_llama

PHASES = ("schedule_s", "prepare_s", "forward_s", "deliver_s", "transport_s")
PROMPT_TOKENS = 32


def measure(engine: Engine, outbox: Outbox, sequences: int, steps: int, logprobs: int | None) -> list[list[float]]:
    """Microseconds by phase of each of `steps` steps in which all sequences decode."""
    chunks = -(-sequences * PROMPT_TOKENS // (engine.config.budget_tokens or 1))
    params = SamplingParams(seed=1, max_tokens=steps + chunks + 20, ignore_eos=True, logprobs=logprobs)
    for i in range(sequences):
        prompt = [3 + (i * PROMPT_TOKENS + place) % 200 for place in range(PROMPT_TOKENS)]
        engine.add(EngineRequest(request_id=f"{i}", prompt_token_ids=prompt, params=params))
    begun = engine.counters.generated_tokens
    while engine.scheduler.stats().waiting or engine.counters.generated_tokens < begun + sequences:
        engine.step()
    engine.step()
    found = []
    for _ in range(steps):
        before = [getattr(engine.counters, phase) for phase in PHASES]
        outbox.send(engine.step(), stats_asked=False)
        after = [getattr(engine.counters, phase) for phase in PHASES]
        found.append([1e6 * (later - sooner) for sooner, later in zip(before, after, strict=True)])
    for request_id in engine.live_requests:
        engine.abort(request_id)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--logprobs", type=int)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--model", help="a model file instead of the tiny one")
    options = parser.parse_args()
    here, there = socket.socketpair()
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(["cat"], stdin=there, stdout=subprocess.DEVNULL) as reader,
    ):
        model = options.model
        if model is None:
            model = write_tiny_llama(Path(folder) / "tiny.gguf", layers=1, context=1024, tied=False)
        engine = Engine(
            EngineConfig(model=str(model), backend=options.backend, kv_bytes=1 << 29, max_seqs=256, max_model_len=1024)
        )
        outbox = Outbox(engine, here)
        print("sequences  schedule  prepare  forward  deliver  transport   host us   host share")
        for sequences in options.sequences:
            steps = measure(engine, outbox, sequences, options.steps, options.logprobs)
            schedule, prepare, forward, deliver, transport = (statistics.median(p) for p in zip(*steps, strict=True))
            host = schedule + prepare + deliver + transport
            phases = f"{schedule:8.0f} {prepare:8.0f} {forward:8.0f} {deliver:8.0f} {transport:10.0f}"
            print(f"{sequences:9}  {phases} {host:9.0f}   {host / (host + forward):9.1%}", flush=True)
        engine.close()
        reader.terminate()


if __name__ == "__main__":
    main()
