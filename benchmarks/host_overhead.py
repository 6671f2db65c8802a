"""What a step costs around the forward pass: scheduling, preparing arrays, delivering tokens.

Decodes with N sequences on a random model small enough that the host's work shows, and prints the median over repeats
of microseconds a step, and the share of the step that is neither the forward pass nor sampling.
Run: python benchmarks/host_overhead.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from puna.engine.config import EngineConfig
from puna.engine.core import Engine
from puna.engine.params import EngineRequest, SamplingParams
from tests.tiny import write_tiny_llama

PHASES = ("schedule_s", "prepare_s", "forward_s", "sample_s", "deliver_s")


def measure(engine: Engine, sequences: int, steps: int, logprobs: int | None) -> dict[str, float]:
    """Mean microseconds a step, by phase, with all sequences decoding."""
    params = SamplingParams(seed=1, max_tokens=steps + 40, ignore_eos=True, logprobs=logprobs)
    for i in range(sequences):
        engine.add(EngineRequest(request_id=str(i), prompt_token_ids=[3 + i % 200] * 32, params=params))
    while engine.scheduler.stats().waiting or engine.counters.generated_tokens < sequences * 2:
        engine.step()
    before = {phase: getattr(engine.counters, phase) for phase in PHASES}
    for _ in range(steps):
        engine.step()
    spent = {phase: 1e6 * (getattr(engine.counters, phase) - before[phase]) / steps for phase in PHASES}
    for request_id in engine.live_requests:
        engine.abort(request_id)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backend", default="cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny_llama(Path(folder) / "tiny.gguf", layers=1, context=1024, tied=False)
        print("sequences  logprobs  schedule  prepare  forward   sample  deliver   host us   host share")
        for sequences in options.sequences:
            for logprobs in (None, 1):
                config = EngineConfig(
                    model=str(model), backend=options.backend, kv_bytes=1 << 28, max_seqs=256, budget_tokens=2048
                )
                engine = Engine(config)
                runs = [measure(engine, sequences, options.steps, logprobs) for _ in range(options.repeats)]
                schedule, prepare, forward, sample, deliver = (
                    statistics.median(run[p] for run in runs) for p in PHASES
                )
                host = schedule + prepare + deliver
                phases = f"{schedule:8.0f} {prepare:8.0f} {forward:8.0f} {sample:8.0f} {deliver:8.0f}"
                share = host / (host + forward + sample)
                print(f"{sequences:9}  {logprobs or '-':>8}  {phases} {host:9.0f}   {share:9.1%}")


if __name__ == "__main__":
    main()
