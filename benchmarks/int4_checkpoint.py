"""What a 4-bit checkpoint gains from being multiplied as the codes that it holds: memory, time of a step, perplexity.

Takes a folder of plain weights, rounds the matrices of its layers to nearest in the layout of AWQ (zeros) or GPTQ
(`--symmetric`: no zeros) and runs the result twice: as it is, and decoded to 16 bits when loaded. Nothing is
calibrated, which makes a poor quantisation and matters to neither comparison.

    puna convert model.gguf folder --type F16
    python benchmarks/int4_checkpoint.py --folder folder --out rounded [--symmetric] [--windows 2] [--isa avx512]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import struct
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from accuracy import Scores, our_scores

from puna.bench.steps import StepShape, make_step, step_seconds
from puna.engine.backend import settle_cache
from puna.engine.config import EngineConfig
from puna.kernels.batch import KVConfig
from puna.kernels.cpu import NativeInterpreter
from puna.kernels.reference.dequantize import dequantize
from puna.kernels.tensor import RawTensor
from puna.models.load import LoadedModel, load_model
from puna.models.safetensors import read_safetensors

Array = npt.NDArray[Any]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
SHAPES = {"1 row": StepShape(1, 1, 200), "8 rows": StepShape(8, 1, 200), "prompt of 128": StepShape(1, 128, 0)}
ROUNDS, TURN_S = 4, 0.2
SAFETENSORS = {"int32": "I32", "float16": "F16"}


def words(codes: Array, order: tuple[int, ...]) -> Array:
    """[rows, 8 n] codes -> [rows, n] words: nibble i is code order[i]."""
    parts = codes.reshape(len(codes), -1, 8)[:, :, order].astype(np.uint32) << np.arange(0, 32, 4, dtype=np.uint32)
    found: Array = np.bitwise_or.reduce(parts, axis=2).astype(np.uint32).view(np.int32)
    return found


def rounded(values: npt.NDArray[np.float32], group: int, symmetric: bool) -> dict[str, Array]:
    """Parts of one matrix [outputs, inputs], as AWQ or GPTQ names them."""
    groups = values.T.reshape(-1, group, len(values))
    high, low = np.maximum(groups.max(axis=1), 0), np.minimum(groups.min(axis=1), 0)
    scale = np.maximum(high, -low) / 7.5 if symmetric else (high - low) / 15
    scales = np.maximum(scale, 1e-5).astype(np.float16)
    steps = scales.astype(np.float32)
    zeros = np.full(steps.shape, 8) if symmetric else np.rint(-low / steps).clip(0, 15).astype(int)
    codes = (np.rint(groups / steps[:, None]) + zeros[:, None]).clip(0, 15).astype(np.uint8).reshape(-1, len(values))
    if symmetric:
        plain = tuple(range(8))
        return {"qweight": words(codes.T, plain).T, "qzeros": words(zeros - 1, plain), "scales": scales}
    return {"qweight": words(codes, AWQ_ORDER), "qzeros": words(zeros, AWQ_ORDER), "scales": scales}


def write_rounded(source: Path, folder: Path, group: int, symmetric: bool) -> None:
    """The whole folder, its layers' matrices rounded."""
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix != ".safetensors" and file.name != "model.safetensors.index.json":
            shutil.copy(file, folder)
    stated = {"quant_method": "gptq" if symmetric else "awq", "bits": 4, "group_size": group, "version": "gemm"}
    config = json.loads((source / "config.json").read_text()) | {"quantization_config": stated}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    header: dict[str, Any] = {}
    written = 0
    with (folder / "data").open("wb") as data:

        def put(name: str, type: str, shape: tuple[int, ...], content: bytes) -> None:
            nonlocal written
            header[name] = {"dtype": type, "shape": shape, "data_offsets": [written, written + len(content)]}
            data.write(content)
            written += len(content)

        for name, tensor in read_safetensors(source).tensors.items():
            module, _, last = name.rpartition(".")
            if last == "weight" and len(tensor.shape) == 2 and ".layers." in name:
                for part, values in rounded(dequantize(tensor), group, symmetric).items():
                    put(f"{module}.{part}", SAFETENSORS[values.dtype.name], values.shape, values.tobytes())
            else:
                put(name, tensor.type, tensor.shape, tensor.data.tobytes())
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file, (folder / "data").open("rb") as data:
        file.write(struct.pack("<Q", len(text)) + text)
        shutil.copyfileobj(data, file)
    (folder / "data").unlink()


def as_values(model: LoadedModel) -> LoadedModel:
    """The same model without codes: what is multiplied are its values."""
    weights = {name: RawTensor(name, each.type, each.shape, each.data) for name, each in model.weights.items()}
    return replace(model, weights=weights)


def print_times(forms: dict[str, LoadedModel], isa: str, threads: int) -> None:
    """Forms take turns; medians and quartiles of ms a step."""
    natives = {}
    for name, model in forms.items():
        kv = KVConfig(8 * 14 + 2, 16, settle_cache(EngineConfig(isa=isa), model).kv_dtype)
        begun = time.perf_counter()
        natives[name] = NativeInterpreter(model.program, model.weights, kv, isa=isa, threads=threads)
        seconds = time.perf_counter() - begun
        print(f"{isa} {name}: {natives[name].packed_bytes / 1e6:.0f} MB, packed in {seconds:.1f} s")
    for what, shape in SHAPES.items():
        batch = make_step(shape, 16, forms["codes"].program.vocab_size)
        found: dict[str, list[float]] = {name: [] for name in forms}
        for _ in range(ROUNDS):
            for name, native in natives.items():
                found[name] += step_seconds(native, batch, 100, TURN_S)
        for name, each in found.items():
            low, middle, high = (1e3 * quartile for quartile in statistics.quantiles(each, n=4))
            print(f"{isa} {name}, {what}: {middle:.1f} ms ({low:.1f} to {high:.1f})")


def print_perplexities(forms: dict[str, LoadedModel], isa: str, windows: int) -> None:
    text = (Path(__file__).parents[1] / "tests" / "data" / "accuracy_text.txt").read_text(encoding="utf-8")
    ids = forms["codes"].tokenizer.encode(text)[: 512 * windows]
    tokens = np.array(ids, np.int32).reshape(-1, 512)
    exact: Scores = our_scores(forms["codes"], tokens, compute="float32", kv_dtype="f32")
    print(f"float32 over the decoded values: perplexity {exact.perplexity:.4f} of {len(exact.best)} tokens")
    for name, model in forms.items():
        line = our_scores(model, tokens, isa=isa).beside(exact)
        print(
            f"{isa} {name}: {line['change']:+.3%} (standard error {line['error']:.3%}), same {line['same_argmax']:.2%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="plain weights, as `puna convert` writes them")
    parser.add_argument("--out", type=Path, required=True, help="where the rounded folder is, or is to be written")
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--windows", type=int, default=0, help="of 512 tokens, for perplexities instead of times")
    given = parser.parse_args()
    if not given.out.exists():
        write_rounded(given.folder, given.out, given.group, given.symmetric)
    model = load_model(given.out)
    forms = {"codes": model, "values": as_values(model)}
    if given.windows:
        print_perplexities(forms, given.isa, given.windows)
    else:
        print_times(forms, given.isa, given.threads)


if __name__ == "__main__":
    main()
