"""What rounding costs, beside llama.cpp on the same file and text: perplexity, and how often float32's choice is kept.

Both are judged by float32 arithmetic over the file's own dequantised weights (Puna's float32 path, which NumPy and
transformers agree with). Every token of the second half of each window is predicted from the true ones before it.
llama.cpp's logits are those that `llama-perplexity --save-all-logits` writes: 16 bits a log-probability, of windows cut
from the same tokens.

    python benchmarks/accuracy.py --model model.gguf --text text.txt --llama BUILD [--window 512] [--windows 4]
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from puna.engine.backend import settle_cache
from puna.engine.config import EngineConfig
from puna.kernels.batch import KVConfig
from puna.kernels.cpu import NativeInterpreter, paths
from puna.models.load import LoadedModel, load_model

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.kernels.steps import rows, step

I32 = npt.NDArray[np.int32]
F64 = npt.NDArray[np.float64]
HALF_HEADER = 4  # u16 before a position's log-probabilities: scale and least, as float32


@dataclass(frozen=True)
class Scores:
    """Of each predicted token: its log-probability, and the most likely token."""

    logprobs: F64
    best: I32

    @property
    def perplexity(self) -> float:
        return float(np.exp(-self.logprobs.mean()))


def llama_scores(build: Path, model: Path, text: Path, window: int, windows: int, threads: int) -> tuple[I32, Scores]:
    """The tokens of its windows [windows, window], and what it makes of them."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "logits"
        command = [str(build / "bin" / "llama-perplexity"), "-m", str(model), "-f", str(text), "-c", str(window)]
        command += ["--chunks", str(windows), "-t", str(threads), "--save-all-logits", str(saved), "--no-warmup"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not saved.exists():
            sys.exit(f"llama-perplexity failed ({done.returncode}): {done.stderr[-2000:]}")
        content = saved.read_bytes()
    magic, n_ctx, n_vocab, n_chunk = struct.unpack("<8sIii", content[:20])
    if magic != b"_logits_" or n_ctx != window:
        sys.exit("llama-perplexity wrote logits in a form that is not known here")
    tokens = np.frombuffer(content, "<i4", n_chunk * n_ctx, 20).reshape(n_chunk, n_ctx)
    width = 2 * ((n_vocab + 1) // 2) + HALF_HEADER
    predicted = n_ctx - 1 - n_ctx // 2
    packed = np.frombuffer(content, "<u2", n_chunk * predicted * width, 20 + tokens.nbytes)
    packed = packed.reshape(n_chunk * predicted, width)
    scale, least = np.ascontiguousarray(packed[:, :HALF_HEADER]).view("<f4").astype(np.float64).T
    codes = packed[:, HALF_HEADER : HALF_HEADER + n_vocab]
    target = tokens[:, n_ctx // 2 + 1 :].reshape(-1)
    logprobs = scale * codes[np.arange(len(target)), target] + least
    return tokens, Scores(logprobs, codes.argmax(axis=1).astype(np.int32))


def our_scores(model: LoadedModel, tokens: I32, **options: Any) -> Scores:
    """With the first token of each window as the model's own beginning, where it has one, as llama.cpp does."""
    window = tokens.shape[1]
    kv_dtype = options.pop("kv_dtype", "") or settle_cache(EngineConfig(isa=options.get("isa", "auto"))).kv_dtype
    interpreter = NativeInterpreter(model.program, model.weights, KVConfig(window // 16 + 2, 16, kv_dtype), **options)
    logprobs, best = [], []
    for ids in tokens.tolist():
        if model.tokenizer.adds_bos:
            ids[0] = model.tokenizer.bos_id
        for begin in range(0, window - 1, 128):
            end = min(begin + 128, window - 1)
            index = [i for i in range(end - begin) if begin + i >= window // 2]
            out = interpreter.step(step([(ids[begin:end], begin, range(1, window // 16 + 2))], rows(index)))
            if index:
                assert out.logits is not None
                logits = out.logits.astype(np.float64)
                peak = logits.max(axis=1)
                total = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
                target = [ids[begin + i + 1] for i in index]
                logprobs.append(logits[np.arange(len(index)), target] - total)
                best.append(logits.argmax(axis=1))
    return Scores(np.concatenate(logprobs), np.concatenate(best).astype(np.int32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, default=Path(__file__).parents[1] / "tests" / "data" / "accuracy_text.txt")
    parser.add_argument("--llama", type=Path, required=True, help="a build of llama.cpp")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = load_model(arguments.model, length=arguments.window)
    tokens, theirs = llama_scores(
        arguments.llama, arguments.model, arguments.text, arguments.window, arguments.windows, arguments.threads
    )
    ids = model.tokenizer.encode(arguments.text.read_text(encoding="utf-8"))[: tokens.size]
    agree = float((np.asarray(ids) == tokens.reshape(-1)[: len(ids)]).mean())
    exact = our_scores(model, tokens, compute="float32", kv_dtype="f32")
    found = {"llama.cpp": theirs} | {f"puna {isa}": our_scores(model, tokens, isa=isa) for isa in quick_paths()}
    print(f"{arguments.model.name}: {len(exact.best)} tokens predicted; tokenization agrees in {agree:.2%}")
    print(f"{'float32':14} perplexity {exact.perplexity:9.4f}")
    report = {
        "model": arguments.model.name,
        "tokens": len(exact.best),
        "float32": exact.perplexity,
        "tokens_agree": agree,
    }
    for name, scores in found.items():
        change, same = scores.perplexity / exact.perplexity - 1, float((scores.best == exact.best).mean())
        report[name] = {"perplexity": scores.perplexity, "change": change, "same_argmax": same}
        print(f"{name:14} perplexity {scores.perplexity:9.4f} ({change:+.3%}), same most likely token {same:.2%}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


def quick_paths() -> list[str]:
    return [isa for isa in paths() if isa in ("amx", "avx512")] or paths()[:1]


if __name__ == "__main__":
    main()
