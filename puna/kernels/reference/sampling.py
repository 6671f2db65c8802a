"""Sampling and scoring of one row, in NumPy, in the documented order.

1 raw log-probabilities  2 allowed tokens (list and mask)  3 banned tokens (bad words, and end ids before min_tokens)
4 logit bias  5 repetition, frequency, presence penalty  6 greedy rows: argmax  7 temperature  8 min-p
9 top-k, then top-p  10 draw: argmax of logit + Gumbel noise, the noise keyed by (seed, position, token) through
Philox 4x32-10 (Salmon et al., SC 2011), so that a draw depends on nothing else. Ties go to the lowest token id.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from puna.kernels.batch import GREEDY_BELOW, NO_TOKEN, NOTHING_LEFT, SampleRows

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U32 = npt.NDArray[np.uint32]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(seed: int, position: int, tokens: npt.NDArray[np.int64]) -> U32:
    """One uint32 a token: lane `token % 4` of Philox 4x32-10 with counter (token // 4, position, 0, 0) and key seed."""
    mask = np.uint64(0xFFFFFFFF)
    counter = [
        (tokens // 4).astype(np.uint64),
        np.full(len(tokens), position, dtype=np.uint64),
        np.zeros(len(tokens), dtype=np.uint64),
        np.zeros(len(tokens), dtype=np.uint64),
    ]
    key = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    for _ in range(10):
        first, second = counter[0] * _MULTIPLIERS[0], counter[2] * _MULTIPLIERS[1]
        counter = [
            (second >> np.uint64(32)) ^ counter[1] ^ np.uint64(key[0]),
            second & mask,
            (first >> np.uint64(32)) ^ counter[3] ^ np.uint64(key[1]),
            first & mask,
        ]
        key = [(k + w) & 0xFFFFFFFF for k, w in zip(key, _WEYL, strict=True)]
    return np.choose(tokens % 4, counter).astype(np.uint32)


def gumbel(bits: U32) -> F64:
    """-log(E) with E = -log1p(-v) exponential, v = (bits + 0.5) / 2^32."""
    v = (bits.astype(np.float64) + 0.5) * 2.0**-32
    return np.asarray(-np.log(-np.log1p(-v)))


def raw_logprobs(logits: F32) -> F64:
    x = logits.astype(np.float64)
    shifted = x - x.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def process_logits(logits: F32, rows: SampleRows, s: int) -> F32:
    """Steps 2 to 5 for sample row s: float32 [vocab]."""
    x = logits.astype(np.float32).copy()
    allowed = rows.allowed_ids[rows.allowed_start[s] : rows.allowed_start[s + 1]]
    if len(allowed):
        kept = np.full_like(x, -np.inf)
        kept[allowed] = x[allowed]
        x = kept
    if len(rows.mask):
        bits = np.unpackbits(rows.mask[s].view(np.uint8), bitorder="little")[: len(x)]
        x[bits == 0] = -np.inf
    x[rows.banned_ids[rows.banned_start[s] : rows.banned_start[s + 1]]] = -np.inf
    biased = slice(rows.bias_start[s], rows.bias_start[s + 1])
    np.add.at(x, rows.bias_ids[biased], rows.bias_values[biased])
    penalties = (rows.repetition[s], rows.frequency[s], rows.presence[s])
    if penalties != (1.0, 0.0, 0.0):
        known = rows.history[rows.history_row[s], : rows.total_len[s]]
        counts = np.bincount(known[rows.prompt_len[s] :], minlength=len(x)).astype(np.float32)
        seen = np.zeros(len(x), dtype=bool)
        seen[known] = True
        x = np.where(seen, np.where(x > 0, x / penalties[0], x * penalties[0]), x).astype(np.float32)
        x -= penalties[1] * counts
        x -= penalties[2] * (counts > 0)
    return x


def filter_logits(x: F32, top_k: int, top_p: float, min_p: float) -> F32:
    """Steps 8 and 9 on logits that are already divided by the temperature: dropped tokens become -inf."""
    if min_p > 0:
        x = np.where(x >= x.max() + np.float32(np.log(min_p)), x, -np.inf).astype(np.float32)
    if 0 < top_k < len(x):
        x = np.where(x >= np.partition(x, -top_k)[-top_k], x, -np.inf).astype(np.float32)
    if top_p < 1:
        order = np.argsort(-x, kind="stable")
        weights = np.exp((x[order] - x[order[0]]).astype(np.float64))
        before = np.cumsum(weights) - weights
        dropped = order[before >= np.float64(np.float32(top_p)) * weights.sum()]
        x = x.copy()
        x[dropped[dropped != order[0]]] = -np.inf
    return x


def choose(logits: F32, rows: SampleRows, s: int) -> int:
    """The token of sample row s: its target, or a draw; NO_TOKEN where a logit is not finite."""
    if not np.isfinite(logits).all():
        return NO_TOKEN
    return int(rows.target[s]) if rows.target[s] >= 0 else draw(logits, rows, s)


def draw(logits: F32, rows: SampleRows, s: int) -> int:
    """The token of sample row s, NOTHING_LEFT where none is allowed. A temperature that makes infinities of logits is
    greedy."""
    x = process_logits(logits, rows, s)
    if not np.isfinite(x.max()):
        return NOTHING_LEFT
    with np.errstate(over="ignore"):
        divided = x / max(rows.temperature[s], np.float32(GREEDY_BELOW))
    if rows.temperature[s] < GREEDY_BELOW or not np.isfinite(divided.max()):
        return int(np.argmax(x))
    x = filter_logits(divided, int(rows.top_k[s]), float(rows.top_p[s]), float(rows.min_p[s]))
    kept = np.flatnonzero(np.isfinite(x))
    noise = gumbel(philox(int(rows.seed[s]), int(rows.position[s]), kept))
    return int(kept[np.argmax(x[kept].astype(np.float64) + noise)])
