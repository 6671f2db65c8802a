"""What drawing a token costs: microseconds a row of logits, by kind of sampling, beside reading the row once.

Rows are random and spread as a language model's are (normal, deviation 3.5); there are more of them than caches hold.
Prints the median over repeats, with the quartiles, of a batch of rows on all threads divided by the rows, and the share
of it that reading the same bytes takes. Run: python benchmarks/sampling.py
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from puna.kernels.cpu import available_threads
from puna.kernels.cpu.sampler import NativeSampler
from tests.kernels.steps import rows

KINDS: dict[str, dict[str, Any]] = {
    "score": {"target": 1},  # only looks for values that are not finite
    "greedy": {},
    "temperature 1": {"temperature": 1.0},
    "temperature 0.7": {"temperature": 0.7},
    "top-p 0.95": {"temperature": 1.0, "top_p": 0.95},
    "top-p 0.95, t 0.7": {"temperature": 0.7, "top_p": 0.95},
    "top-p 0.5, t 2": {"temperature": 2.0, "top_p": 0.5},
    "top-k 50": {"temperature": 1.0, "top_k": 50},
    "top-k 1000": {"temperature": 1.0, "top_k": 1000},
    "top-k 50, top-p 0.95": {"temperature": 1.0, "top_k": 50, "top_p": 0.95},
    "min-p 0.05": {"temperature": 1.0, "min_p": 0.05},
    "penalties": {"repetition": 1.1, "frequency": 0.1, "total_len": 1000, "prompt_len": 500},
    "mask": {"temperature": 1.0, "mask": True},
    "5 logprobs": {"num_logprobs": 5},
}


def timed(call: Callable[[], Any], repeats: int) -> list[float]:
    """Microseconds a call."""
    call()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        found.append(1e6 * (time.perf_counter() - start))
    return found


def measure(vocab: int, count: int, threads: int, isa: str, repeats: int, kinds: list[str]) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    logits = (random.standard_normal((count, vocab)) * 3.5).astype(np.float32)
    sampler = NativeSampler(isa, threads)
    calls: dict[str, Callable[[], Any]] = {}
    for kind in kinds:
        given = dict(KINDS[kind])
        if given.pop("mask", False):
            given["mask"] = random.integers(0, 2**32, (count, -(-vocab // 32)), dtype=np.uint32)
        given |= {"history": random.integers(0, vocab, (count, 1000)), "history_row": range(count)}
        samples = rows(range(count), seed=np.arange(count), position=77, **given)
        calls[kind] = lambda samples=samples: sampler.sample(logits, samples)
    calls["read"] = lambda: logits.view(np.uint64).max()  # one thread, in NumPy's vectors
    found: dict[str, list[float]] = {kind: [] for kind in calls}
    for _ in range(5):  # interleaved, so that a slow moment meets all kinds
        for kind, call in calls.items():
            found[kind] += timed(call, repeats)
    read_us = float(np.median(found.pop("read"))) / count / threads
    table = []
    for kind, spent in found.items():
        low, median, high = (float(q) / count for q in np.quantile(spent, [0.25, 0.5, 0.75]))
        line = {"vocab": vocab, "rows": count, "threads": threads, "kind": kind}
        table.append(line | {"us_a_row": median, "quartiles": [low, high], "read_us": read_us})
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, nargs="+", default=[49152, 151936])
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 1])
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--repeats", type=int, default=5, help="of each of five rounds")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print(f"{options.threads} threads, {options.isa}", file=sys.stderr)
    for vocab in options.vocab:
        for count in options.rows:
            threads = min(options.threads, count)
            table = measure(vocab, count, threads, options.isa, options.repeats, options.kinds)
            for line in table:
                if options.json:
                    print(json.dumps(line))
                    continue
                low, high = line["quartiles"]
                share = line["read_us"] / line["us_a_row"]
                print(
                    f"{vocab:7} x {count:2}  {line['kind']:22} {line['us_a_row']:8.1f} us a row "
                    f"({low:.1f} to {high:.1f})   reading {line['read_us']:.1f} us, {share:4.0%}"
                )


if __name__ == "__main__":
    main()
