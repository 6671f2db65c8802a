"""The row-wise operators in NumPy: what each means, in as few lines as it can be said.

Every function takes float32 arrays with one row a token and returns a new float32 array. Attention and sampling have
files of their own.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from puna.kernels.program import Activation, RopeStyle

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

GROUP = 32  # values that share one scale on the integer path
WIDE_ABOVE = 6.0  # a group with a value this many times the row's root mean square is held in two bytes


def rms_norm(x: F32, weight: F32, eps: float, group: int = 0) -> F32:
    """x: [T, width]; over each run of `group` values, or the whole row where it is 0."""
    grouped = x.reshape(x.shape[0], -1, group or x.shape[1])
    mean_square = np.mean(np.square(grouped), axis=-1, keepdims=True, dtype=np.float32)
    return (grouped / np.sqrt(mean_square + np.float32(eps)) * weight).astype(np.float32).reshape(x.shape)


def layer_norm(x: F32, weight: F32, bias: F32 | None, eps: float) -> F32:
    centred = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float32)
    variance = np.mean(np.square(centred), axis=-1, keepdims=True, dtype=np.float32)
    out = centred / np.sqrt(variance + np.float32(eps)) * weight
    return (out if bias is None else out + bias).astype(np.float32)


def linear(x: F32, weight: F32, bias: F32 | None = None) -> F32:
    """x: [T, in], weight: [out, in] -> [T, out]."""
    out = x @ weight.T
    return out if bias is None else out + bias


def round_rows(x: F32) -> F32:
    """x as the integer path holds it: rounded in groups of 32 along each row (csrc/quantize.hpp).

    A group is int8 with scale max|x| / 127, rounded half to even. A group whose largest value is more than WIDE_ABOVE
    times the row's root mean square is wide: a second byte holds what the first one left, in steps 128 times finer.
    """
    groups = -(-x.shape[1] // GROUP)
    padded = np.zeros((x.shape[0], groups * GROUP), dtype=np.float32)
    padded[:, : x.shape[1]] = x
    grouped = padded.reshape(x.shape[0], groups, GROUP)
    peak: F32 = np.max(np.abs(grouped), axis=-1)
    scale = (peak / np.float32(127)).astype(np.float32)
    scale[scale < np.finfo(np.float32).tiny] = 0  # their inverse may be infinite
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    exact = grouped * inverse[..., None]
    whole = np.rint(exact)
    fine = np.rint((exact - whole) * np.float32(128)) / np.float32(128)
    mean_square: F32 = np.asarray(np.mean(np.square(x), axis=1, dtype=np.float32))
    wide = peak**2 > np.float32(WIDE_ABOVE**2) * mean_square[:, None]
    rounded: F32 = np.where(wide[..., None], whole + fine, whole) * scale[..., None]
    return rounded.reshape(x.shape[0], -1)[:, : x.shape[1]].astype(np.float32)


def linear_rounded(x: F32, weight: F32, bias: F32 | None = None) -> F32:
    """`linear` with the activations rounded as the integer path rounds them."""
    return linear(round_rows(x), weight, bias)


def round_bf16(x: F32) -> F32:
    """x with eight bits of mantissa: the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, rounded.view(np.float32))


def linear_bf16(x: F32, weight: F32, bias: F32 | None = None) -> F32:
    """`linear` with weights and activations rounded to bf16, as paths with tiles round them (csrc/matmul_amx.hpp)."""
    return linear(round_bf16(x), round_bf16(weight), bias)


def linear_f16(x: F32, weight: F32, bias: F32 | None = None) -> F32:
    """`linear` with weights of f16 as paths with tiles multiply them (csrc/matmul_amx.hpp): both factors as sums of two
    bf16, of weights the upper bits and, exactly, the rest; the product of the two rests is left out."""
    rounded = round_bf16(x)
    top = (weight.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return linear(rounded + round_bf16(x - rounded), top, bias) + linear(rounded, weight - top)


def rope(x: F32, positions: I32, heads: int, head_dim: int, inv_freq: F32, style: RopeStyle, scale: float) -> F32:
    """x: [T, heads * head_dim]; angles in float64 so that long positions keep their phase."""
    half = len(inv_freq)
    angle = positions[:, None].astype(np.float64) * inv_freq[None, :].astype(np.float64)
    cos = (np.cos(angle) * scale).astype(np.float32)[:, None, :]
    sin = (np.sin(angle) * scale).astype(np.float32)[:, None, :]
    out = x.reshape(-1, heads, head_dim).copy()
    if style == "interleaved":
        first, second = out[..., 0 : 2 * half : 2].copy(), out[..., 1 : 2 * half : 2].copy()
        out[..., 0 : 2 * half : 2], out[..., 1 : 2 * half : 2] = first * cos - second * sin, first * sin + second * cos
    else:
        first, second = out[..., :half].copy(), out[..., half : 2 * half].copy()
        out[..., :half], out[..., half : 2 * half] = first * cos - second * sin, first * sin + second * cos
    return out.reshape(x.shape)


def activation(x: F32, kind: Activation) -> F32:
    if kind == "silu":
        return np.asarray(x / (1 + np.exp(-x.clip(-80, None))), np.float32)
    if kind == "gelu":
        return np.asarray(0.5 * x * (1 + _erf(x / np.sqrt(2.0))), np.float32)
    if kind == "gelu_tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))), np.float32)
    positive = np.maximum(x, 0)
    return positive * positive if kind == "relu2" else positive


def sigmoid(x: F32) -> F32:
    return np.asarray(1 / (1 + np.exp(-x.clip(-80, None))), np.float32)


def route(scores: F32, used: int, normalised: bool, scale: float) -> tuple[I32, F32]:
    """Experts of each token, best first, and their shares: both [T, used]. See `Experts` in kernels/program.py."""
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    chosen = np.argsort(-shares, axis=1, kind="stable")[:, :used].astype(np.int32)
    best = np.take_along_axis(shares, chosen, axis=1)
    if normalised:
        best = best / best.sum(axis=1, keepdims=True)
    return chosen, (best * np.float32(scale)).astype(np.float32)


def softcap(x: F32, cap: float) -> F32:
    return np.asarray(cap * np.tanh(x / np.float32(cap)), np.float32)


def _erf(x: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """NumPy has no erf; the standard library's is exact and slow."""
    from math import erf

    return np.vectorize(erf, otypes=[np.float64])(x)  # type: ignore[no-any-return]
