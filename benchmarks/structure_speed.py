"""What a form costs: throughput of the same requests with a JSON schema and without, at two sizes of vocabulary.

Every request has as many tokens in both: a list of records that does not end before them, and end-of-sequence ignored.
Runs with and without are interleaved, so that what else the machine does falls on both; printed are the median ratio
with its quartiles, and where the time of steps went. Run: python benchmarks/structure_speed.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from puna.bench.machine import MachineWatch
from puna.engine.llm import LLM
from puna.engine.params import SamplingParams
from puna.engine.structure import StructuredOutputs

RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 60},
        "kind": {"enum": ["person", "place", "thing"]},
        "size": {"type": "integer", "minimum": 0, "maximum": 100000},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{2,12}$"}, "maxItems": 4},
        "note": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 200}]},
    },
    "required": ["name", "kind", "size", "tags", "note"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": RECORD, "minItems": 1000}
PHASES = ("schedule_s", "prepare_s", "forward_s", "sample_s", "deliver_s")


def run(llm: LLM, requests: int, tokens: int, prompt_tokens: int, form: StructuredOutputs | None) -> dict[str, float]:
    """Tokens a second, and milliseconds a step by phase."""
    params = [
        SamplingParams(temperature=1.0, seed=number, max_tokens=tokens, ignore_eos=True, structured_outputs=form)
        for number in range(requests)
    ]
    prompts = [[(17 * number + place) % 5000 + 300 for place in range(prompt_tokens)] for number in range(requests)]
    counters = llm.engine.counters
    steps, before = counters.steps, {phase: getattr(counters, phase) for phase in PHASES}
    begun = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - begun
    drawn = [len(output.outputs[0].token_ids) for output in outputs]
    assert drawn == [tokens] * requests, f"an answer is shorter: {sorted(set(drawn))}, {outputs[0].outputs[0].error}"
    count = counters.steps - steps
    phases = {phase: 1e3 * (getattr(counters, phase) - before[phase]) / count for phase in PHASES}
    return {"tokens_s": requests * tokens / seconds, **phases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["smollm2"])
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    form = StructuredOutputs(json=SCHEMA)
    for model in options.models:
        with LLM(model, max_seqs=options.requests, max_model_len=1024) as llm:
            size = (options.requests, options.tokens, options.prompt_tokens)
            run(llm, options.requests, 8, options.prompt_tokens, form)
            run(llm, options.requests, 8, options.prompt_tokens, None)
            watch, pairs = MachineWatch(), []
            for number in range(options.repeats):
                kinds = [None, form] if number % 2 else [form, None]
                found = {kind is not None: run(llm, *size, kind) for kind in kinds}
                pairs.append((found[False], found[True]))
            ratios = sorted(held["tokens_s"] / free["tokens_s"] for free, held in pairs)
            quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
            median = {
                name: [round(statistics.median(pair[kind][name] for pair in pairs), 2) for kind in (0, 1)]
                for name in ("tokens_s", *PHASES)
            }
            print(
                json.dumps(
                    {
                        "model": model,
                        "vocabulary": llm.engine.limits.vocab_size,
                        "cost": round(1 - statistics.median(ratios), 4),
                        "cost_quartiles": [round(1 - ratio, 4) for ratio in reversed(quartiles)],
                        "without_and_with": median,
                        "quiet": watch.report().quiet,
                    },
                    indent=1,
                )
            )


if __name__ == "__main__":
    main()
