"""What attention and the writing of its cache cost, beside what the machine could do at most.

    python benchmarks/attention.py [--cache f16 int8 bf16 f32] [--isa auto] [--threads 0] [--rounds 7] [--layers 30]

Programs of nothing but attention, at the shape of SmolLM2-135M (9 query and 3 key heads of 64, 30 layers with a pool
each, so that the cache of one layer is not in the processor's cache when its turn comes again). What a step without
these operators takes is measured in the same rounds and subtracted. Prefill is compared with the float32 multiply-adds
the processor can do, decoding with the bytes that memory delivers; both limits are measured in the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time

import numpy as np

from puna.bench.limits import MachineLimits, measure_limits
from puna.kernels.batch import MOVE_COPY, KVConfig, SampleRows, StepBatch
from puna.kernels.cpu import NativeInterpreter
from puna.kernels.program import Attend, Embed, KVShape, Linear, Op, Program, StoreKV
from puna.kernels.tensor import RawTensor

HEADS, KV_HEADS, HEAD_DIM, BLOCK = 9, 3, 64, 16
ROWS = 64  # of the tables that queries, keys and values are taken from
CASES = {  # name: (sequences, tokens before, new tokens, shuffled blocks)
    "prefill 512": (1, 0, 512, False),
    "prefill 2048": (1, 0, 2048, False),
    "chunk of 128 behind 1,920": (1, 1920, 128, False),
    "decode 1 x 200": (1, 199, 1, False),
    "decode 1 x 1,000": (1, 999, 1, False),
    "decode 1 x 8,000": (1, 7999, 1, False),
    "decode 8 x 192": (8, 191, 1, False),
    "decode 32 x 200": (32, 199, 1, False),
    "decode 32 x 200, shuffled": (32, 199, 1, True),
    "decode 32 x 1,000": (32, 999, 1, False),
    "decode 32 x 1,000, shuffled": (32, 999, 1, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", nargs="+", default=["f16", "int8"], choices=["f16", "bf16", "f32", "int8"])
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores this process may use")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--case", nargs="+", default=[""], help="only cases whose names contain one of these")
    options = parser.parse_args()
    probe = NativeInterpreter(_program(0, 0), _weights(), KVConfig(2), threads=options.threads, isa=options.isa)
    limits = measure_limits(probe.isa, probe.threads)
    print(f"{probe.isa}, {probe.threads} threads")
    for cache in options.cache:
        print(f"\n{cache} cache; median of {options.rounds} rounds (lowest to highest), all {options.layers} layers")
        for name, case in CASES.items():
            if any(part in name for part in options.case):
                print(f"  {name:28s} {measure(case, cache, limits, options)}", flush=True)


def measure(case: tuple[int, int, int, bool], cache: str, limits: MachineLimits, options: argparse.Namespace) -> str:
    sequences, before, new, shuffled = case
    blocks_each = -(-(before + new) // BLOCK)
    kv = KVConfig(sequences * blocks_each + 1, BLOCK, cache)
    order = np.arange(1, kv.num_blocks, dtype=np.int32)
    if shuffled:
        order = np.random.default_rng(0).permutation(order)
    tables = np.ascontiguousarray(order.reshape(sequences, blocks_each))
    programs = [_program(0, 0), _program(options.layers, 0), _program(options.layers, options.layers)]
    interpreters = [
        NativeInterpreter(program, _weights(), kv, threads=options.threads, isa=options.isa) for program in programs
    ]
    for interpreter in interpreters:
        # Random tokens into block 1, and from there everywhere: untouched memory would be read from one zero page.
        interpreter.step(_batch(np.ones((1, 1), np.int32), 0, BLOCK))
        moves = [(MOVE_COPY, 1, block) for block in range(2, kv.num_blocks)]
        interpreter.step(dataclasses.replace(_batch(tables[:0], 0, 0), moves=np.array(moves, np.int32).reshape(-1, 3)))
    batch = _batch(tables, before, new)
    seconds: list[list[float]] = [[] for _ in interpreters]
    for round_number in range(options.rounds + 1):
        for interpreter, times in zip(interpreters, seconds, strict=True):
            begun = time.perf_counter()
            interpreter.step(batch)
            if round_number:
                times.append(time.perf_counter() - begun)
    rest, store, both = (np.array(times) for times in seconds)
    attend = sorted((both - np.minimum(store, both)).tolist())
    keys = sequences * sum(before + t + 1 for t in range(new))
    operations = 4.0 * HEADS * HEAD_DIM * keys * options.layers
    per_token = {"f32": 8, "f16": 4, "bf16": 4, "int8": 2}[cache] * HEAD_DIM + (8 if cache == "int8" else 0)
    size = per_token * KV_HEADS * sequences * (before + new) * options.layers
    took = statistics.median(attend)
    if new > 1:
        rate, most, unit = operations / took, limits.operations_per_s["f32"], "GFLOP/s"
    else:
        rate, most, unit = size / took, limits.read_bytes_per_s(size), "GB/s"
    stored = max(0.0, statistics.median(store) - statistics.median(rest))
    return (
        f"{took * 1e3:8.2f} ms ({attend[0] * 1e3:.2f} to {attend[-1] * 1e3:.2f})  {rate / 1e9:6.1f} {unit}, "
        f"{rate / most:4.0%} of {most / 1e9:.0f}   writing {stored * 1e3:.2f} ms"
    )


def _program(store_layers: int, attend_layers: int) -> Program:
    wide, narrow = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    body: list[Op] = [Embed("query", "queries"), Embed("key", "keys"), Embed("value", "keys")]
    for layer in range(store_layers):
        body.append(StoreKV(layer, "key", "value"))
        if layer < attend_layers:
            body.append(Attend(layer, "query", "hidden", HEADS, KV_HEADS, HEAD_DIM, HEAD_DIM**-0.5))
    return Program(
        buffers={"query": wide, "key": narrow, "value": narrow, "hidden": wide, "logits": ROWS},
        body=tuple(body),
        head=(Linear("hidden", "logits", "head"),),
        kv=(KVShape(KV_HEADS, HEAD_DIM),) * max(store_layers, 1),
        vocab_size=ROWS,
    )


def _weights() -> dict[str, RawTensor]:
    random = np.random.default_rng(1)
    wide, narrow = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    return {
        name: RawTensor(
            name, "F32", (ROWS, width), random.standard_normal((ROWS, width)).astype("<f4").view(np.uint8).ravel()
        )
        for name, width in (("queries", wide), ("keys", narrow), ("head", wide))
    }


def _batch(tables: np.ndarray[tuple[int, int], np.dtype[np.int32]], before: int, new: int) -> StepBatch:
    count = len(tables)
    integers, floats = np.zeros(0, np.int32), np.zeros(0, np.float32)
    fields: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {
        field.name: floats if field.type == "F32" else integers
        for field in dataclasses.fields(SampleRows)
        if field.default_factory is dataclasses.MISSING
    }
    start = np.zeros(1, np.int32)
    fields |= {"allowed_start": start, "banned_start": start, "bias_start": start, "seed": np.zeros(0, np.uint64)}
    fields["history"] = np.zeros((1, 1), np.int32)
    return StepBatch(
        token_ids=np.arange(count * new, dtype=np.int32) % np.int32(ROWS),
        positions=np.tile(np.arange(before, before + new, dtype=np.int32), count),
        query_start=np.arange(0, count * new + 1, new, dtype=np.int32) if new else np.zeros(1, np.int32),
        tables=tables,
        moves=np.zeros((0, 3), np.int32),
        samples=SampleRows(**fields),  # type: ignore[arg-type]
    )


if __name__ == "__main__":
    main()
