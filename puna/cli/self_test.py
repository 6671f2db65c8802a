"""A small decoder layer with random weights, run natively and in NumPy: the self-test of `puna doctor`.

It goes through what a real model goes through (4-bit and 8-bit matrices, norms, rotary embedding, paged attention)
and needs no file. Both sides round activations alike, so they differ by float rounding only.
"""

from __future__ import annotations

import numpy as np

from puna.kernels import program as ops
from puna.kernels.batch import KVConfig, SampleRows, StepBatch
from puna.kernels.program import KVShape, Program
from puna.kernels.tensor import BLOCK_SIZES, RawTensor

WIDTH, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD, VOCAB = 128, 4, 2, 32, 256, 512
TOKENS, BLOCK_SIZE = 24, 16


def largest_difference() -> float:
    """Of the logits, over both numeric paths. ImportError where there is no native core."""
    from puna.kernels.cpu import NativeInterpreter
    from puna.kernels.reference.interpreter import ReferenceInterpreter

    weights, kv = _weights(), KVConfig(num_blocks=4, block_size=BLOCK_SIZE, dtype="f32")
    worst = 0.0
    for compute in ("float32", "int8"):
        core = NativeInterpreter(_PROGRAM, weights, kv, compute=compute)
        native = core.step(_batch()).logits
        expected = ReferenceInterpreter(_PROGRAM, weights, kv, rounding=core.rounding).step(_batch()).logits
        assert native is not None
        assert expected is not None
        difference = float(np.abs(native - expected).max())
        worst = max(worst, difference if np.isfinite(difference) else np.inf)
    return worst


_FREQUENCIES = tuple(float(10000.0 ** (-i / (HEAD_DIM // 2))) for i in range(HEAD_DIM // 2))
_PROGRAM = Program(
    buffers={
        "hidden": WIDTH,
        "normed": WIDTH,
        "query": HEADS * HEAD_DIM,
        "key": KV_HEADS * HEAD_DIM,
        "value": KV_HEADS * HEAD_DIM,
        "attended": HEADS * HEAD_DIM,
        "gate": FEED_FORWARD,
        "up": FEED_FORWARD,
        "logits": VOCAB,
    },
    body=(
        ops.Embed("hidden", "embedding"),
        ops.RmsNorm("hidden", "normed", "norm", 1e-5),
        ops.Linear("normed", "query", "query"),
        ops.Linear("normed", "key", "key"),
        ops.Linear("normed", "value", "value"),
        ops.Rope("query", HEADS, HEAD_DIM, _FREQUENCIES, "interleaved"),
        ops.Rope("key", KV_HEADS, HEAD_DIM, _FREQUENCIES, "interleaved"),
        ops.StoreKV(0, "key", "value"),
        ops.Attend(0, "query", "attended", HEADS, KV_HEADS, HEAD_DIM, HEAD_DIM**-0.5),
        ops.Linear("attended", "hidden", "output", accumulate=True),
        ops.RmsNorm("hidden", "normed", "norm", 1e-5),
        ops.Linear("normed", "gate", "gate"),
        ops.Linear("normed", "up", "up"),
        ops.Gate("gate", "up", "gate", "silu"),
        ops.Linear("gate", "hidden", "down", accumulate=True),
    ),
    head=(ops.RmsNorm("hidden", "normed", "norm", 1e-5), ops.Linear("normed", "logits", "embedding")),
    kv=(KVShape(KV_HEADS, HEAD_DIM),),
    vocab_size=VOCAB,
)


def _weights() -> dict[str, RawTensor]:
    random = np.random.default_rng(0)

    def matrix(name: str, kind: str, rows: int, columns: int) -> RawTensor:
        """Random quantised bytes with sane scales: float16 scale, for Q4_1 a float16 minimum, then the codes."""
        elements, size = BLOCK_SIZES[kind]
        blocks = random.integers(0, 256, (rows * columns // elements, size), dtype=np.uint8)
        steps = 15 if kind == "Q4_1" else 255
        scale = np.full(len(blocks), 2.0 / (steps * columns**0.5), np.float16)
        blocks[:, 0:2] = scale[:, None].view(np.uint8)
        if kind == "Q4_1":
            blocks[:, 2:4] = (scale * np.float16(-steps / 2))[:, None].view(np.uint8)
        return RawTensor(name, kind, (rows, columns), blocks.reshape(-1))

    norm = np.linspace(0.5, 1.5, WIDTH, dtype=np.float32)
    return {
        "embedding": matrix("embedding", "Q8_0", VOCAB, WIDTH),
        "norm": RawTensor("norm", "F32", (WIDTH,), norm.view(np.uint8)),
        "query": matrix("query", "Q4_1", HEADS * HEAD_DIM, WIDTH),
        "key": matrix("key", "Q4_1", KV_HEADS * HEAD_DIM, WIDTH),
        "value": matrix("value", "Q4_1", KV_HEADS * HEAD_DIM, WIDTH),
        "output": matrix("output", "Q4_1", WIDTH, HEADS * HEAD_DIM),
        "gate": matrix("gate", "Q4_1", FEED_FORWARD, WIDTH),
        "up": matrix("up", "Q8_0", FEED_FORWARD, WIDTH),
        "down": matrix("down", "Q4_1", WIDTH, FEED_FORWARD),
    }


def _batch() -> StepBatch:
    """One sequence in blocks 1 and 2; the logits of its last token, drawn greedily."""

    def ints(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        return np.array(values, np.int32)

    def floats(value: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        return np.array([value], np.float32)

    samples = SampleRows(
        index=ints(TOKENS - 1),
        target=ints(-1),
        num_logprobs=ints(-1),
        temperature=floats(0),
        top_k=ints(0),
        top_p=floats(1),
        min_p=floats(0),
        repetition=floats(1),
        frequency=floats(0),
        presence=floats(0),
        seed=np.zeros(1, np.uint64),
        position=ints(TOKENS),
        history=np.zeros((1, TOKENS), np.int32),
        history_row=ints(0),
        prompt_len=ints(TOKENS),
        total_len=ints(TOKENS),
        allowed_start=ints(0, 0),
        allowed_ids=ints(),
        banned_start=ints(0, 0),
        banned_ids=ints(),
        bias_start=ints(0, 0),
        bias_ids=ints(),
        bias_values=np.zeros(0, np.float32),
    )
    return StepBatch(
        token_ids=np.arange(TOKENS, dtype=np.int32),
        positions=np.arange(TOKENS, dtype=np.int32),
        query_start=ints(0, TOKENS),
        tables=np.array([[1, 2]], np.int32),
        moves=np.empty((0, 3), np.int32),
        samples=samples,
        want_logits=True,
    )
