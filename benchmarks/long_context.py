"""A long text through the engine: whether a number told at its start is recited at its end, and what that costs.

For each length a prompt is made of the number, prose, and a question; it is computed as `puna serve` would, alone. Told
are the answer, times of steps, decoding behind that history, and memory: what grows beside weights and the pool is the
working memory. `--steps` times single steps behind histories of zeros instead, which takes seconds, not minutes.

    python benchmarks/long_context.py --model model.gguf --lengths 8000,30000 [--steps]
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from puna.engine.config import EngineConfig
from puna.engine.core import Engine
from puna.engine.params import EngineRequest, SamplingParams
from puna.engine.prompts import chat_prompts
from puna.kernels.batch import KVConfig, kv_bytes_per_block
from puna.sched.draft import Draft
from tests.kernels.steps import rows, step

TEXT = Path(__file__).parents[1] / "tests" / "data" / "accuracy_text.txt"
NUMBER = "48213"
TOLD = f"Remember this: the secret number is {NUMBER}. A long text follows; at its end I shall ask for the number.\n\n"
ASKED = (
    "\n\nThe text ends here. What is the secret number that I told you at the beginning? Answer with the number only."
)
ANSWER_TOKENS = 24
MB = 1e6


def peak_rss() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


def rss() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MB


def open_engine(model: str, longest: int) -> Engine:
    return Engine(EngineConfig(model=model, max_model_len=longest, max_seqs=2, memory_share=0.7, prefix_cache=False))


def needle_prompt(engine: Engine, length: int) -> list[int]:
    """A chat message of about `length` tokens."""
    model = engine.backend.model
    prose = model.tokenizer.encode(TEXT.read_text(encoding="utf-8"))
    wanted = length - len(model.tokenizer.encode(TOLD + ASKED)) - 40  # what a template adds
    filler = model.tokenizer.decode((prose * (wanted // len(prose) + 1))[:wanted])
    (rendered,) = chat_prompts(model, [[{"role": "user", "content": TOLD + filler + ASKED}]], True, {}, [None])
    return list(rendered.token_ids)


def run_needle(engine: Engine, length: int) -> None:
    tokens, prompt = [], needle_prompt(engine, length)
    params = SamplingParams(temperature=0.0, max_tokens=ANSWER_TOKENS, ignore_eos=True)
    before = peak_rss()
    engine.add(EngineRequest(request_id=str(length), prompt_token_ids=prompt, params=params))
    prefill, decode = [], []
    while engine.has_work:
        started = time.perf_counter()
        updates = engine.step()
        (decode if tokens else prefill).append(time.perf_counter() - started)
        tokens += [token for update in updates for token in update.token_ids]
    text = engine.backend.model.tokenizer.decode(tokens)
    blocks = -(-(len(prompt) + len(tokens)) // engine.config.block_size)
    kv = kv_bytes_per_block(engine.backend.model.program, KVConfig(1, engine.config.block_size, engine.config.kv_dtype))
    print(
        f"{len(prompt):6} tokens: {'found' if NUMBER in text else 'LOST'} {text[:30]!r}; prompt {sum(prefill):.1f} s "
        f"in {len(prefill)} steps, the longest {1e3 * max(prefill):.0f} ms; decoding {1e3 * np.median(decode):.1f} ms "
        f"a token; peak {peak_rss():.0f} MB, {peak_rss() - before:+.0f} for {blocks * kv / MB:.0f} of keys and values",
        flush=True,
    )


def time_steps(engine: Engine, histories: list[int]) -> None:
    interpreter, settled, prices = engine.backend.interpreter, engine.config, engine.backend.history_tokens
    budget = settled.budget_tokens or 1
    block = settled.block_size
    table = list(range(1, interpreter.kv.num_blocks))

    def seconds(tokens: int, history: int) -> float:
        batch = step([([5] * tokens, history, table)], rows([tokens - 1]), want_logits=False)
        taken = []
        for _ in range(3):
            started = time.perf_counter()
            interpreter.step(batch)
            taken.append(time.perf_counter() - started)
        return float(np.median(taken))

    for history in histories:
        chunk = Draft(budget, prices).chunk(history, budget, block)
        print(
            f"behind {history:6}: {chunk:4} tokens of a prompt {1e3 * seconds(chunk, history):6.0f} ms; "
            f"one token {1e3 * seconds(1, history):6.1f} ms; resident {rss():.0f} MB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--lengths", default="8000,16000,30000")
    parser.add_argument("--steps", action="store_true", help="time single steps behind these lengths")
    options = parser.parse_args()
    lengths = [int(length) for length in options.lengths.split(",")]
    engine = open_engine(options.model, max(lengths) + 2048)
    print(
        f"{engine.backend.model.name}: a step has {engine.config.budget_tokens} tokens, a history of "
        f"{engine.backend.history_tokens} tokens costs as much as a token; "
        f"ready with {rss():.0f} MB resident, {peak_rss():.0f} at most"
    )
    if options.steps:
        time_steps(engine, [0, *lengths])
    else:
        for length in lengths:
            run_needle(engine, length)
    engine.close()


if __name__ == "__main__":
    main()
