"""Two other ways to what beam search finds: every continuation there is, and transformers' way with whole tables.

Both are given `model(tokens) -> log-probabilities of every next token`, and share no code with Puna's search.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Model = Callable[[tuple[int, ...]], Sequence[float]]
Found = list[tuple[tuple[int, ...], float]]  # tokens and score, best first
NEVER = -1.0e9


def every_continuation(model: Model, vocab: int, longest: int, ends: set[int], penalty: float, least: int = 0) -> Found:
    """All answers: those that end with an end id behind at least `least` tokens, and those of `longest` tokens."""
    found: Found = []
    for length in range(1, longest + 1):
        for tokens in itertools.product(range(vocab), repeat=length):
            ended = [place for place, token in enumerate(tokens) if token in ends]
            if any(place < least for place in ended):
                continue
            if ended[:1] == [length - 1] or (length == longest and not ended):
                total = sum(model(tokens[:i])[token] for i, token in enumerate(tokens))
                found.append((tokens, total / length**penalty))
    return sorted(found, key=lambda one: -one[1])


def whole_tables(
    model: Model, vocab: int, longest: int, ends: set[int], width: int, penalty: float, early: Any, least: int = 0
) -> Found:
    """Beams as rows of tables with a place for every token; what is out of the question has a score of NEVER."""
    running: list[tuple[int, ...]] = [()] * width
    totals = np.array([0.0] + [NEVER] * (width - 1))
    answers: list[tuple[int, ...]] = [()] * width
    scores, finished = np.full(width, NEVER), np.zeros(width, bool)
    keep = max(2, 1 + len(ends)) * width
    for length in range(1, longest + 1):
        table = np.stack([np.asarray(model(row), float) for row in running])
        if length <= least:
            table[:, sorted(ends)] = -np.inf
        flat = (table + totals[:, None]).ravel()
        order = np.argsort(-flat, kind="stable")[:keep]
        tokens = [(*running[i // vocab], int(i % vocab)) for i in order]
        hit = np.array([t[-1] in ends or length == longest for t in tokens])
        going = flat[order] + hit * NEVER
        onward = np.argsort(-going, kind="stable")[:width]
        score = flat[order] / length**penalty
        score[~(hit & (np.arange(len(order)) < width))] = NEVER
        if early is True and finished.all():
            score[:] = NEVER
        merged, names = np.concatenate([scores, score]), [*answers, *tokens]
        best = np.argsort(-merged, kind="stable")[:width]
        ended = np.concatenate([finished, hit & (np.arange(len(order)) < width)])
        answers, scores, finished = [names[i] for i in best], merged[best], ended[best]
        running, totals = [tokens[i] for i in onward], going[onward]
        reach = longest if early == "never" and penalty > 0 else length
        worst = scores.min() if finished.all() else NEVER
        if hit.all() or totals[0] / reach**penalty <= worst or (early is True and finished.all()):
            break
    return [(answer, float(score)) for answer, score, done in zip(answers, scores, finished, strict=True) if done]
