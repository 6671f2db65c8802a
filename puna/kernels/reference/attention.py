"""The paged KV pool and causal attention over block tables, in NumPy.

The pool is one array a layer: [blocks, 2, block_size, kv_heads, head_dim] (keys, then values). Position p of a
sequence lies in block table[p // block_size], at offset p % block_size.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from puna.kernels.batch import MOVE_COPY, MOVE_OUT, KVConfig
from puna.kernels.program import Attend, Program
from puna.kernels.reference.operators import softcap

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


class KVPool:
    """Keys and values of all layers, and of the tier beside the pool. pools of smaller types round on writing."""

    def __init__(self, program: Program, kv: KVConfig) -> None:
        self.block_size = kv.block_size
        self.dtype = kv.dtype
        self.pool = [self._layer(kv.num_blocks, s.kv_heads, s.head_dim) for s in program.kv]
        self.tier = [self._layer(kv.tier_blocks, s.kv_heads, s.head_dim) for s in program.kv]

    def _layer(self, blocks: int, kv_heads: int, head_dim: int) -> F32:
        return np.zeros((blocks, 2, self.block_size, kv_heads, head_dim), dtype=np.float32)

    def move(self, moves: I32) -> None:
        for kind, src, dst in moves.tolist():
            for pool, tier in zip(self.pool, self.tier, strict=True):
                if kind == MOVE_COPY:
                    pool[dst] = pool[src]
                elif kind == MOVE_OUT:
                    tier[dst] = pool[src]
                else:
                    pool[dst] = tier[src]

    def store(self, layer: int, blocks: I32, offsets: I32, key: F32, value: F32) -> None:
        """key, value: [T, kv_heads * head_dim], written at (blocks[t], offsets[t])."""
        shape = (len(blocks), *self.pool[layer].shape[3:])
        self.pool[layer][blocks, 0, offsets] = self._round(key.reshape(shape))
        self.pool[layer][blocks, 1, offsets] = self._round(value.reshape(shape))

    def gather(self, layer: int, table: I32, length: int) -> tuple[F32, F32]:
        """Keys and values [length, kv_heads, head_dim] of the first `length` positions."""
        blocks = self.pool[layer][table[: -(-length // self.block_size)]]
        flat = blocks.transpose(1, 0, 2, 3, 4).reshape(2, -1, *blocks.shape[3:])
        return flat[0, :length], flat[1, :length]

    def _round(self, x: F32) -> F32:
        if self.dtype == "f16":
            return x.clip(-65504, 65504).astype(np.float16).astype(np.float32)
        if self.dtype == "int8":
            return round_to_int8(x)
        return round_to_bf16(x) if self.dtype == "bf16" else x


def round_to_bf16(x: F32) -> F32:
    """Nearest bf16, ties to even, kept in float32."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def round_to_int8(x: F32) -> F32:
    """x: [..., head_dim]. Whole numbers from -127 to 127 times one scale a token and head, kept in float32.

    All NaN where a value is not finite, all 0 where every one is below 1e-30.
    """
    magnitude = np.abs(x).max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = np.where(magnitude < 1e-30, np.float32(0), np.float32(127) / magnitude)
        scale = np.where(magnitude < 1e-30, np.float32(0), magnitude / np.float32(127))
        rounded = np.rint(x * inverse) * scale
    return np.where(np.isfinite(magnitude), rounded, np.float32(np.nan))


RANGE = 128  # keys whose weights stand beside one peak on tiles
LOG2_E = np.float32(1.44269504)


def attend(op: Attend, query: F32, positions: I32, keys: F32, values: F32) -> F32:
    """query: [n, heads * head_dim] of one sequence at `positions`; keys, values: [length, kv_heads, head_dim]."""
    group = op.heads // op.kv_heads
    q = query.reshape(-1, op.kv_heads, group, op.head_dim).transpose(1, 2, 0, 3)
    with np.errstate(over="ignore", invalid="ignore"):
        scores = q @ keys.transpose(1, 2, 0)[:, None] * np.float32(op.scale)
    if op.softcap > 0:
        scores = softcap(scores, op.softcap)
    key_positions = np.arange(len(keys), dtype=np.int32)
    visible = key_positions[None, :] <= positions[:, None]
    if op.window > 0:
        visible &= key_positions[None, :] > positions[:, None] - op.window
    scores = np.where(visible, scores, -np.inf)
    with np.errstate(invalid="ignore"):  # a row whose scores are all -inf is NaN
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    out = _weighted(weights, values.transpose(1, 0, 2)[:, None], visible)
    return np.ascontiguousarray(out.transpose(2, 0, 1, 3)).reshape(query.shape).astype(np.float32)


def _weighted(weights: F32, values: F32, visible: npt.NDArray[np.bool_]) -> F32:
    """Sums over keys, in which a key that a row does not see has no part: 0 times NaN or infinity would be NaN."""
    if np.isfinite(values).all():
        return weights @ values
    with np.errstate(invalid="ignore"):
        rows = [weights[..., row : row + 1, seen] @ values[..., seen, :] for row, seen in enumerate(visible)]
    return np.concatenate(rows, axis=2)


def attend_on_tiles(op: Attend, query: F32, positions: I32, keys: F32, values: F32) -> F32:
    """`attend` as paths with tiles round it (csrc/attention_amx.cpp): to bf16 are rounded the scaled query and each
    weight, 2^(score - the highest score of its 128 keys); a total is the sum of rounded weights."""
    group, length = op.heads // op.kv_heads, len(keys)
    q = query.reshape(-1, op.kv_heads, group, op.head_dim).transpose(1, 2, 0, 3)
    q = round_to_bf16(q * (np.float32(op.scale) * LOG2_E))
    peaks = np.full(q.shape[:3], -np.inf, np.float32)
    totals, sums = np.zeros_like(peaks), np.zeros_like(q)
    for first in range(0, length, RANGE):
        places = np.arange(first, min(length, first + RANGE), dtype=np.int32)
        with np.errstate(over="ignore", invalid="ignore"):
            scores = q @ keys[places].transpose(1, 2, 0)[:, None]
        if op.softcap > 0:
            scores = softcap(scores, float(np.float32(op.softcap) * LOG2_E))
        visible = places[None, :] <= positions[:, None]
        if op.window > 0:
            visible &= places[None, :] > positions[:, None] - op.window
        scores = np.where(visible, scores, -np.inf)
        peak = scores.max(axis=-1)
        peak = np.where(visible.any(axis=-1) & (peak == -np.inf), np.finfo(np.float32).min, peak)  # -inf: saw no key
        higher = np.maximum(peaks, peak)
        with np.errstate(invalid="ignore"):  # rows that have seen no key yet
            weights = round_to_bf16(np.where(visible, np.exp2(scores - peak[..., None]), np.float32(0)))
            own, new = np.exp2(peaks - higher), np.exp2(peak - higher)
        own, new = np.where(peaks > -np.inf, own, 0), np.where(peak > -np.inf, new, 0)
        totals = totals * own + weights.sum(axis=-1) * new
        seen = _weighted(weights, values[places].transpose(1, 0, 2)[:, None], visible)
        sums = sums * own[..., None] + seen * new[..., None]
        peaks = higher
    with np.errstate(invalid="ignore"):  # as there: 0 / 0
        out = sums / totals[..., None]
    return np.ascontiguousarray(out.transpose(2, 0, 1, 3)).reshape(query.shape).astype(np.float32)
