"""Many answers from one long prompt: n forks of it, beside as many separate requests without a prefix cache.

    python benchmarks/forks.py [MODEL] [SAMPLES] [PROMPT_TOKENS] [TOKENS] [REPEATS]

One after the other in turn, in two engines of the same process; medians of the repeats. Forks compute the prompt once
and hold its whole blocks once; separate requests do both for each. Both get the same tokens, which is checked. Prints a
row for the separate requests, for n and for as many beams, with the blocks in use when the most were.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from puna.engine.config import EngineConfig
from puna.engine.core import Engine
from puna.engine.params import EngineRequest, SamplingParams
from puna.models.names import resolve

Answers = dict[tuple[str, int], list[int]]


def run(engine: Engine, requests: list[EngineRequest]) -> tuple[float, int, Answers]:
    """Seconds, the most blocks in use, and what was drawn."""
    answers: Answers = {}
    blocks, begun = 0, time.perf_counter()
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for update in engine.step():
            answers.setdefault((update.request_id, update.index), []).extend(update.token_ids)
        blocks = max(blocks, engine.scheduler.stats().blocks_used)
    return time.perf_counter() - begun, blocks, answers


def main(
    model: str = "smollm2", samples: str = "8", prompt_tokens: str = "1000", tokens: str = "64", repeats: str = "5"
) -> None:
    count, length, answer = int(samples), int(prompt_tokens), int(tokens)
    engine = Engine(
        EngineConfig(
            model=str(resolve(model)),
            kv_bytes=1 << 30,
            max_seqs=max(8, count),
            max_model_len=length + answer + 16,
            prefix_cache=False,
        )
    )
    vocab = engine.backend.model.program.vocab_size

    def request(name: str, prompt: list[int], **params: object) -> EngineRequest:
        fields = {"max_tokens": answer, "ignore_eos": True, **params}
        return EngineRequest(request_id=name, prompt_token_ids=prompt, params=SamplingParams(**fields))  # type: ignore[arg-type]

    kinds: dict[str, Callable[[list[int]], list[EngineRequest]]] = {
        "separate requests": lambda prompt: [request(str(i), prompt, seed=1 + i) for i in range(count)],
        f"n={count}": lambda prompt: [request("n", prompt, seed=1, n=count)],
        f"{count} beams": lambda prompt: [request("b", prompt, temperature=0.0, n=count, beam_width=count)],
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    blocks: dict[str, int] = {}
    for repeat in range(int(repeats) + 1):  # the first warms up
        prompt = np.random.default_rng(repeat).integers(0, vocab, length).tolist()
        drawn = []
        for kind, make in kinds.items():
            taken_s, blocks[kind], answers = run(engine, make(prompt))
            drawn.append(list(answers.values()))
            seconds[kind] += [taken_s] if repeat else []
        assert sorted(drawn[0]) == sorted(drawn[1]), "a fork draws what a request with its seed draws"
    medians = {kind: statistics.median(those) for kind, those in seconds.items()}
    apart = medians["separate requests"]
    print(f"{engine.backend.model.name}: {count} x {answer} tokens from a prompt of {length}, median of {repeats}")
    for kind, median in medians.items():
        spread = f"{min(seconds[kind]):.2f} to {max(seconds[kind]):.2f}"
        print(f"{kind:>18}: {median:6.2f} s ({spread}), {apart / median:5.2f} x, {blocks[kind]:5d} blocks at most")
    engine.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
