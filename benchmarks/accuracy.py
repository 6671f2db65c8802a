"""What rounding costs, beside llama.cpp on the same file and text: perplexity, and how often float32's choice is kept.

Both are judged by float32 arithmetic over the file's own dequantised weights (Puna's float32 path, which NumPy and
transformers agree with). Every token of the second half of each window is predicted from the true ones before it.
llama.cpp's logits are those that `llama-perplexity --save-all-logits` writes: 16 bits a log-probability, of windows cut
from the same tokens. It cuts them off 16 below the best, so its perplexity is the one that it prints. A change is given
with its standard error over the tokens: four windows tell no 0.5 % apart, all of the text does.

    python benchmarks/accuracy.py --model model.gguf --llama BUILD [--text text.txt] [--window 512] [--windows 17]
    python benchmarks/accuracy.py --model folder --llama-model same.gguf --llama BUILD   # what llama.cpp cannot open
    python benchmarks/accuracy.py --model model.gguf --llama BUILD --llama-options="-ctk f32 -ctv f32 -fa off"
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
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
    """Of each predicted token: its log-probability, and the most likely token. `printed` is a perplexity that is known
    better than from these log-probabilities."""

    logprobs: F64
    best: I32
    printed: float = 0.0

    @property
    def perplexity(self) -> float:
        return self.printed or float(np.exp(-self.logprobs.mean()))

    def beside(self, exact: Scores) -> dict[str, float]:
        """How far the perplexity lies from the exact one, the standard error of that, how often the choice is kept."""
        return {
            "perplexity": self.perplexity,
            "change": self.perplexity / exact.perplexity - 1,
            "error": float((self.logprobs - exact.logprobs).std() / np.sqrt(len(self.logprobs))),
            "same_argmax": float((self.best == exact.best).mean()),
        }


def llama_scores(command: list[str], window: int) -> tuple[I32, Scores]:
    """The tokens of its windows [windows, window], and what it makes of them."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "logits"
        command = [*command, "-c", str(window), "--save-all-logits", str(saved), "--no-warmup"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        printed = re.search(r"Final estimate: PPL = ([0-9.]+)", done.stdout + done.stderr)
        if done.returncode or not saved.exists() or not printed:
            sys.exit(f"llama-perplexity failed ({done.returncode}): {done.stderr[-2000:]}")
        with saved.open("rb") as file:
            magic, n_ctx, n_vocab, n_chunk = struct.unpack("<8sIii", file.read(20))
            if magic != b"_logits_" or n_ctx != window:
                sys.exit("llama-perplexity wrote logits in a form that is not known here")
            tokens = np.fromfile(file, "<i4", n_chunk * n_ctx).reshape(n_chunk, n_ctx)
            width = 2 * ((n_vocab + 1) // 2) + HALF_HEADER
            target = tokens[:, n_ctx // 2 + 1 :]
            logprobs, best = [], []
            for ids in target:
                packed = np.fromfile(file, "<u2", len(ids) * width).reshape(len(ids), width)
                scale, least = np.ascontiguousarray(packed[:, :HALF_HEADER]).view("<f4").astype(np.float64).T
                codes = packed[:, HALF_HEADER : HALF_HEADER + n_vocab]
                logprobs.append(scale * codes[np.arange(len(ids)), ids] + least)
                best.append(codes.argmax(axis=1))
    return tokens, Scores(np.concatenate(logprobs), np.concatenate(best).astype(np.int32), float(printed[1]))


def our_scores(model: LoadedModel, tokens: I32, **options: Any) -> Scores:
    """With the first token of each window as the model's own beginning, where it has one, as llama.cpp does."""
    window = tokens.shape[1]
    kv_dtype = options.pop("kv_dtype", "") or settle_cache(EngineConfig(isa=options.get("isa", "auto")), model).kv_dtype
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
    parser.add_argument("--llama-model", type=Path, help="what llama.cpp reads, where that is another file")
    parser.add_argument("--llama-options", default="", help="more options of llama-perplexity, in one string")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=17)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = load_model(arguments.model, length=arguments.window)
    command = [str(arguments.llama / "bin" / "llama-perplexity"), "-m", str(arguments.llama_model or arguments.model)]
    command += ["-f", str(arguments.text), "--chunks", str(arguments.windows), "-t", str(arguments.threads)]
    tokens, theirs = llama_scores(command + shlex.split(arguments.llama_options), arguments.window)
    ids = model.tokenizer.encode(arguments.text.read_text(encoding="utf-8"))[: tokens.size]
    agree = float((np.asarray(ids) == tokens.reshape(-1)[: len(ids)]).mean())
    exact = our_scores(model, tokens, compute="float32", kv_dtype="f32")
    found = {"llama.cpp": theirs} | {f"puna {isa}": our_scores(model, tokens, isa=isa) for isa in quick_paths()}
    print(f"{arguments.model.name}: {len(exact.best)} tokens predicted; tokenization agrees in {agree:.2%}")
    print(f"{'float32':14} perplexity {exact.perplexity:9.4f}")
    report: dict[str, Any] = {
        "model": arguments.model.name,
        "tokens": len(exact.best),
        "float32": exact.perplexity,
        "tokens_agree": agree,
        "llama_options": arguments.llama_options,
    }
    for name, scores in found.items():
        report[name] = line = scores.beside(exact)
        print(
            f"{name:14} perplexity {line['perplexity']:9.4f} ({line['change']:+.3%}, standard error "
            f"{line['error']:.3%}), same most likely token {line['same_argmax']:.2%}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


def quick_paths() -> list[str]:
    return [isa for isa in paths() if isa in ("amx", "avx512")] or paths()[:1]


if __name__ == "__main__":
    main()
