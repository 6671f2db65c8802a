"""Decoding beside llama.cpp on the very same file: one stream, and many sequences at once.

    python benchmarks/same_file.py --model FILE.gguf --llama build/amx --llama build/vnni

Prints a row of Markdown for each figure: tokens a second, medians of the rounds, and the ratio to the quicker build,
taken within rounds. Puna's engine and llama-batched-bench take turns; prompts are random and short.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
from pathlib import Path

from peer_engines import Worker, puna_worker

from puna.kernels.cpu import available_threads

PROMPT_LEN = 32
DECODED = {1: 64, 16: 16}  # sequences at once: tokens of each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--llama", type=Path, action="append", required=True, help="a build of llama.cpp; repeatable")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--log", type=Path, default=Path("same_file.log"), help="what Puna says")
    options = parser.parse_args()
    found: dict[tuple[str, int], list[float]] = {}
    ours = puna_worker(options.model, options.log)
    try:
        _puna(ours, 1, 4), _puna(ours, 16, 4)  # warms up
        for _ in range(options.rounds):
            for count, tokens in DECODED.items():
                found.setdefault(("Puna", count), []).append(_puna(ours, count, tokens))
                ours.pause()
                for build in options.llama:
                    rate = _llama(build, options.model, count, tokens)
                    found.setdefault((f"llama.cpp, {build.name}", count), []).append(rate)
    finally:
        ours.close()
    names = list(dict.fromkeys(name for name, _ in found))
    print(f"| decode, tokens/s | {' | '.join(names)} | Puna over the quicker build |")
    print("|---" * (len(names) + 2) + "|")
    for count in DECODED:
        rates = [found[name, count] for name in names]
        ratios = [each[0] / max(each[1:]) for each in zip(*rates, strict=True)]
        cells = " | ".join(f"{statistics.median(each):.1f}" for each in rates)
        spread = f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {count} at once | {cells} | {spread} |")


def _puna(worker: Worker, count: int, tokens: int) -> float:
    """Tokens a second after the first ones: the difference of a run of one token and a longer one."""
    dice = random.Random(count)
    seconds = []
    for output_len in (1, 1 + tokens):
        prompts = [[dice.randrange(100, 40000) for _ in range(PROMPT_LEN)] for _ in range(count)]
        work = {"temperature": 0.0, "top_p": 0.95, "seed": 1, "alone": count == 1}
        seconds.append(float(worker.ask(prompts=prompts, output_len=output_len, **work)["seconds"]))
    return count * tokens / (seconds[1] - seconds[0])


def _llama(build: Path, model: Path, count: int, tokens: int) -> float:
    shape = ["-npp", str(PROMPT_LEN), "-ntg", str(tokens), "-npl", str(count), "-c", "2048"]
    program = [str(build / "bin" / "llama-batched-bench"), "-m", str(model), "-t", str(available_threads())]
    done = subprocess.run([*program, *shape, "--output-format", "jsonl"], capture_output=True, text=True, check=True)
    row = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    return float(row["speed_tg"])


if __name__ == "__main__":
    main()
