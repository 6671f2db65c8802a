"""vLLM as a peer: runs inside vLLM's own virtual environment and knows nothing of Puna.

usage: VLLM_CPU_OMP_THREADS_BIND=0-1 VLLM_CPU_KVCACHE_SPACE=4 python vllm_worker.py MODEL_FOLDER
It loads the model, says {"ready": true, ...} on a line that begins with "@", and then answers each line of standard
input, a JSON object {"prompts": [[token ids], ...], "output_len", "temperature", "top_p", "seed"}, with the seconds
that generating took. End-of-sequence tokens are ignored, so every answer has `output_len` tokens.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from vllm import LLM, SamplingParams, __version__


def main() -> None:
    started = time.perf_counter()
    llm = LLM(
        sys.argv[1],
        dtype="bfloat16",
        max_model_len=4096,
        max_num_seqs=64,
        max_num_batched_tokens=4096,  # more than its default: a prompt of 2,048 tokens is one step
        seed=1,
    )
    say(ready=True, version=__version__, load_s=time.perf_counter() - started)
    for line in sys.stdin:
        say(seconds=run(llm, json.loads(line)))


def run(llm: LLM, work: dict[str, Any]) -> float:
    prompts = [{"prompt_token_ids": ids} for ids in work["prompts"]]
    greedy = work["temperature"] == 0
    params = [
        SamplingParams(
            temperature=work["temperature"],
            top_p=1.0 if greedy else work["top_p"],
            seed=None if greedy else work["seed"] + row,
            max_tokens=work["output_len"],
            ignore_eos=True,
            detokenize=False,
        )
        for row in range(len(prompts))
    ]
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    lengths = {len(output.outputs[0].token_ids) for output in outputs}
    if lengths != {work["output_len"]}:
        raise RuntimeError(f"answers have {lengths} tokens, not {work['output_len']}")
    return seconds


def say(**facts: Any) -> None:
    print("@" + json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
