"""Finds the scale of a run of weights that loses least when they become whole numbers of a few bits.

Two shapes of run: value = scale * q with q around zero, and value = scale * q - minimum. For a handful of first guesses
the values are rounded, then scale and minimum are those of the weighted least squares for these whole numbers, and the
guess with the least error stays. Large values weigh more: they move a dot product more. Knows no byte layouts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

SIGNED_GUESSES = (-0.6, -0.3, 0.0, 0.3, 0.6)  # added to the largest whole number that the extreme value may become
OFFSET_GUESSES = (-0.6, -0.2, 0.2, 0.6)


def importance(runs: F32) -> F32:
    """How much an error in each value counts: its size beside that of its neighbours. [runs, values]."""
    spread = np.sqrt((runs * runs).mean(axis=1, keepdims=True))
    weights: F32 = np.abs(runs) + spread + np.float32(1e-30)
    return weights


def signed_scales(runs: F32, most: int) -> F32:
    """Scales [runs, 1] for q from -most to most - 1. May be negative: the extreme value becomes -most."""
    extreme = np.take_along_axis(runs, np.abs(runs).argmax(axis=1)[:, None], axis=1)
    weights = importance(runs)
    weighted = weights * runs
    best: F32 = extreme / np.float32(-most)
    best_gain = np.full_like(best, -1)
    for guess in SIGNED_GUESSES:
        inverse = _inverted(extreme, np.float32(-most - guess))
        q = np.rint(runs * inverse)
        np.clip(q, -most, most - 1, out=q)
        along = np.einsum("ij,ij->i", weighted, q)[:, None]
        size = np.einsum("ij,ij,ij->i", weights, q, q)[:, None]
        scale = _quotient(along, size)
        gain = along * scale  # what the squared error falls by, of the sum of squares
        better = gain > best_gain
        best, best_gain = np.where(better, scale, best), np.where(better, gain, best_gain)
    return best


def offset_scales(runs: F32, most: int) -> tuple[F32, F32]:
    """Scales and minima [runs, 1], neither below zero, for value = scale * q - minimum with q from 0 to `most`."""
    weights = importance(runs)
    low = np.minimum(runs.min(axis=1, keepdims=True), np.float32(0))
    span = runs.max(axis=1, keepdims=True) - low
    total, first = weights.sum(axis=1), np.einsum("ij,ij->i", weights, runs)
    best_scale: F32 = span / np.float32(most)
    best_low = low
    q = np.rint((runs - low) * _inverted(span, np.float32(most)))
    best_error = _error(weights, runs, best_scale * q + low)
    for guess in OFFSET_GUESSES:
        q = np.rint((runs - low) * _inverted(span, np.float32(most + guess)))
        np.clip(q, 0, most, out=q)
        scale, offset = _line(weights, runs, q, total, first)
        error = _error(weights, runs, scale[:, None] * q + offset[:, None])
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better[:, None], scale[:, None], best_scale)
        best_low = np.where(better[:, None], offset[:, None], best_low)
    return best_scale, -best_low


def _error(weights: F32, runs: F32, found: F32) -> F32:
    found -= runs
    summed: F32 = np.einsum("ij,ij,ij->i", weights, found, found)
    return summed


def _line(weights: F32, runs: F32, q: F32, total: F32, first: F32) -> tuple[F32, F32]:
    """Scale and offset of the weighted least squares; an offset above zero becomes zero. Where all of a run's q are
    the same there is no line: what comes out is no better than the first guess, and is not taken."""
    weighted = weights * q
    of_q, of_qq = weighted.sum(axis=1), np.einsum("ij,ij->i", weighted, q)
    of_qx = np.einsum("ij,ij->i", weighted, runs)
    determinant = total * of_qq - of_q * of_q
    scale = _quotient(total * of_qx - of_q * first, determinant)
    offset = _quotient(of_qq * first - of_q * of_qx, determinant)
    alone = (offset > 0) | (determinant <= np.float32(1e-5) * total * of_qq) | (scale < 0)
    scale = np.where(alone, np.maximum(_quotient(of_qx, of_qq), 0), scale)
    return scale, np.where(alone, np.float32(0), offset)


def _quotient(above: F32, below: F32) -> F32:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _inverted(extent: F32, count: np.float32) -> F32:
    """count / extent; 0 where there is no extent."""
    return np.divide(count, extent, out=np.zeros_like(extent), where=extent != 0)
