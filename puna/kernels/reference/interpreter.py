"""Runs a program in NumPy float32: the truth that other backends are compared with.

It keeps dequantised weights and a float32 pool (or one rounded to the cache type). NumPy's matrix products may sum in
another order for another batch, so it is not batch-invariant; it is exact enough to judge those that are.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from puna.kernels import program as ops
from puna.kernels.batch import KVConfig, Rounding, StepBatch, StepOutput, attends_on_tiles
from puna.kernels.reference import operators
from puna.kernels.reference.attention import KVPool, attend, attend_on_tiles
from puna.kernels.reference.dequantize import dequantize
from puna.kernels.reference.sampling import choose, raw_logprobs
from puna.kernels.tensor import PLAIN_TYPES, RawTensor

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


def _product(rounding: Rounding, type: str) -> Callable[[F32, F32, F32 | None], F32]:
    if rounding == "int8" and type not in PLAIN_TYPES:
        return operators.linear_rounded
    if rounding == "bf16" and type == "F16":
        return operators.linear_f16
    if rounding == "bf16" and (type == "BF16" or type not in PLAIN_TYPES):
        return operators.linear_bf16
    return operators.linear


class ReferenceInterpreter:
    """See `puna.kernels.batch.Interpreter`. `rounding` is what the native core does to factors of linears
    (`NativeInterpreter.rounding`): "int8" rounds the inputs of matrices that are quantised in the file, "bf16" both
    factors, also of BF16 matrices, to 8 bits of mantissa, inputs of F16 matrices to 16, and attention's factors where
    the cache is bf16."""

    batch_invariant = False

    def __init__(
        self,
        program: ops.Program,
        weights: Mapping[str, RawTensor],
        kv: KVConfig,
        *,
        rounding: Rounding = "none",
    ) -> None:
        self.program = program
        self.kv = kv
        self._rounding = rounding
        self._weights = {name: dequantize(weights[name]) for name in program.weights()}
        self._product = {n: _product(rounding, weights[n].type) for n in program.weights()}
        self._pool = KVPool(program, kv)
        self._progress = 0
        self.sample_s = 0.0
        digest = hashlib.sha256(program.digest())
        for name in program.weights():
            digest.update(name.encode())
            digest.update(weights[name].data[:: max(1, weights[name].data.size // 4096)].tobytes())
        self._fingerprint = f"{digest.hexdigest()[:16]}-numpy-{kv.dtype}" + (
            "" if rounding == "none" else f"-{rounding}"
        )

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def progress(self) -> int:
        return self._progress

    def step(self, batch: StepBatch) -> StepOutput:
        self._pool.move(batch.moves)
        width = len(batch.token_ids)
        buffers = {name: np.zeros((width, w), dtype=np.float32) for name, w in self.program.buffers.items()}
        slots = self._slots(batch)
        for op in self.program.body if width else ():
            self._run(op, buffers, batch, slots)
        index = batch.samples.index
        for name, extent in self.program.buffers.items():
            buffers[name] = buffers[name][index] if name != "logits" else np.zeros((len(index), extent), np.float32)
        for op in self.program.head if len(index) else ():
            self._run(op, buffers, batch, slots)
        begun = time.perf_counter()
        out = self._sample(batch, buffers["logits"])
        self.sample_s = time.perf_counter() - begun
        return out

    def _slots(self, batch: StepBatch) -> tuple[I32, I32]:
        rows = np.repeat(np.arange(len(batch.tables)), np.diff(batch.query_start))
        return batch.tables[rows, batch.positions // self.kv.block_size], batch.positions % self.kv.block_size

    def _run(self, op: ops.Op, buffers: dict[str, F32], batch: StepBatch, slots: tuple[I32, I32]) -> None:
        self._progress += 1
        w = self._weights
        match op:
            case ops.Embed():
                buffers[op.out] = w[op.weight][batch.token_ids].copy()
            case ops.EmbedPositions():
                buffers[op.out] = buffers[op.out] + w[op.weight][batch.positions + op.offset]
            case ops.RmsNorm():
                buffers[op.out] = operators.rms_norm(buffers[op.src], w[op.weight], op.eps, op.group)
            case ops.LayerNorm():
                bias = None if op.bias is None else w[op.bias]
                buffers[op.out] = operators.layer_norm(buffers[op.src], w[op.weight], bias, op.eps)
            case ops.Linear():
                bias = None if op.bias is None else w[op.bias]
                out = self._product[op.weight](buffers[op.src], w[op.weight], bias)
                buffers[op.out] = buffers[op.out] + out if op.accumulate else out
            case ops.Rope():
                inv_freq = np.asarray(op.inv_freq, dtype=np.float32)
                buffers[op.buffer] = operators.rope(
                    buffers[op.buffer], batch.positions, op.heads, op.head_dim, inv_freq, op.style, op.scale
                )
            case ops.StoreKV():
                self._pool.store(op.layer, *slots, buffers[op.key], buffers[op.value])
            case ops.Attend():
                buffers[op.out] = self._attend(op, buffers[op.query], batch)
            case ops.Activate():
                buffers[op.out] = operators.activation(buffers[op.src], op.kind)
            case ops.Gate():
                buffers[op.out] = operators.activation(buffers[op.gate], op.kind) * buffers[op.up]
            case ops.Experts():
                out = self._experts(op, buffers[op.src], buffers[op.router])
                buffers[op.out] = buffers[op.out] + out if op.accumulate else out
            case ops.ScaleRows():
                buffers[op.buffer] = buffers[op.buffer] * operators.sigmoid(buffers[op.gate])
            case ops.Add():
                buffers[op.out] = buffers[op.out] + buffers[op.src]
            case ops.Scale():
                buffers[op.buffer] = buffers[op.buffer] * np.float32(op.factor)
            case ops.Softcap():
                buffers[op.buffer] = operators.softcap(buffers[op.buffer], op.cap)

    def _experts(self, op: ops.Experts, x: F32, scores: F32) -> F32:
        chosen, shares = operators.route(scores, op.used, op.normalised, op.scale)
        out = np.zeros((len(x), self.program.buffers[op.out]), dtype=np.float32)
        for slot in range(op.used):
            for expert in np.unique(chosen[:, slot]):
                tokens = np.flatnonzero(chosen[:, slot] == expert)
                part = [self._product[name](x[tokens], self._weights[name][expert], None) for name in (op.gate, op.up)]
                gated = operators.activation(part[0], op.kind) * part[1]
                down = self._product[op.down](gated, self._weights[op.down][expert], None)
                out[tokens] += shares[tokens, slot, None] * down
        return out

    def _attend(self, op: ops.Attend, query: F32, batch: StepBatch) -> F32:
        out = np.zeros((len(query), op.heads * op.head_dim), dtype=np.float32)
        for r, (start, end) in enumerate(zip(batch.query_start[:-1], batch.query_start[1:], strict=True)):
            if start < end:
                positions = batch.positions[start:end]
                keys, values = self._pool.gather(op.layer, batch.tables[r], int(positions[-1]) + 1)
                on_tiles = self._rounding == "bf16" and attends_on_tiles(op.head_dim, self.kv.dtype)
                compute = attend_on_tiles if on_tiles else attend
                out[start:end] = compute(op, query[start:end], positions, keys, values)
        return out

    def _sample(self, batch: StepBatch, logits: F32) -> StepOutput:
        rows = batch.samples
        while not rows.ready[0]:
            time.sleep(1e-4)
        out = StepOutput.blank(rows, logits.copy() if batch.want_logits else None)
        out.tokens[:] = [choose(logits[s], rows, s) for s in range(len(rows.index))]
        for s in np.flatnonzero((rows.num_logprobs >= 0) & (out.tokens >= 0)):
            logprobs, token, k = raw_logprobs(logits[s]), out.tokens[s], int(rows.num_logprobs[s])
            out.logprob[s] = logprobs[token]
            out.rank[s] = 1 + np.count_nonzero(logits[s] > logits[s][token])
            order = np.argsort(-logits[s], kind="stable")[:k]
            out.top_ids[s, : len(order)], out.top_logprobs[s, : len(order)] = order, logprobs[order]
        return out
