"""From a sample's parameters to the rows that a backend samples with.

The order in which a backend applies them, and which this file prepares: raw log-probabilities; allowed tokens; bad
words and, before `min_tokens`, the ids that would end the sample (both arrive as banned ids); logit bias; repetition,
frequency and presence penalty; greedy rows take the maximum; temperature; min-p; top-k, then top-p; draw, with noise
keyed by (seed, position). Knows token ids only: no text, no scheduler.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

from puna.engine.params import SamplingParams
from puna.errors import PunaError
from puna.kernels.batch import F32, I32, NO_TOKEN, NOTHING_LEFT, U64, SampleRows

_SEED_MASK = 2**64 - 1
_NO_IDS = np.empty(0, dtype=np.int32)
_NO_VALUES = np.empty(0, dtype=np.float32)


class NothingLeftError(PunaError):
    """Every token that a sample allows is banned at this position."""


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """How one sample draws, compiled once. `stop_ids` end it; `plain` recipes need no ragged lists in any step."""

    params: SamplingParams
    seed: int  # of this sample, 0 .. 2^64 - 1
    prompt_len: int
    eos_ids: frozenset[int]  # empty where ignore_eos
    stop_ids: frozenset[int]
    bad_words: tuple[tuple[int, ...], ...]
    allowed: I32
    bias_ids: I32
    bias_values: F32
    num_logprobs: int  # -1: none
    plain: bool
    last_ids: frozenset[int]  # a token of these may be the last one: `eos_ids`, `stop_ids`, and no token at all

    @property
    def penalised(self) -> bool:
        p = self.params
        return p.repetition_penalty != 1 or p.frequency_penalty != 0 or p.presence_penalty != 0

    def settled(self, written: int) -> bool:
        """Whether, `written` tokens into the output, the ragged lists stay the same for every token to come."""
        return self.plain or not (self.bad_words or written < self.params.min_tokens)

    def banned(self, tokens: array[int]) -> list[int]:
        """Ids that may not follow `tokens` (prompt and output). NothingLeftError where no allowed one remains."""
        ids: set[int] = set()
        written = len(tokens) - self.prompt_len
        if written < self.params.min_tokens:
            ids |= self.eos_ids | self.stop_ids
        for word in self.bad_words:
            tail = len(word) - 1
            if tail <= written and (tail == 0 or tuple(tokens[-tail:]) == word[:-1]):
                ids.add(word[-1])
        if ids and len(self.allowed) and ids.issuperset(self.allowed.tolist()):
            raise NothingLeftError(
                f"after {written} tokens every one of allowed_token_ids is ruled out by bad_words or min_tokens; "
                "allow more tokens"
            )
        return sorted(ids)


def compile_recipe(
    params: SamplingParams, index: int, prompt_len: int, eos_ids: list[int], bad_word_ids: list[list[int]]
) -> Recipe:
    """The recipe of sample `index`, which draws with seed + index modulo 2^64."""
    allowed = np.array(sorted(set(params.allowed_token_ids or ())), dtype=np.int32)
    bias = sorted(params.logit_bias.items())
    eos, stop = frozenset(() if params.ignore_eos else eos_ids), frozenset(params.stop_token_ids)
    bad_words = tuple(sorted({tuple(word) for word in bad_word_ids}))
    return Recipe(
        params=params,
        seed=((params.seed or 0) + index) & _SEED_MASK,
        prompt_len=prompt_len,
        eos_ids=eos,
        stop_ids=stop,
        bad_words=bad_words,
        allowed=allowed,
        bias_ids=np.array([token for token, _ in bias], dtype=np.int32),
        bias_values=np.array([value for _, value in bias], dtype=np.float32),
        num_logprobs=-1 if params.wanted_logprobs is None else params.wanted_logprobs,
        plain=not (len(allowed) or bias or bad_words or params.min_tokens),
        last_ids=eos | stop | {NO_TOKEN, NOTHING_LEFT},
    )


class SamplingTable:
    """Parameters of all running sequences in persistent arrays, one column a slot."""

    def __init__(self, slots: int) -> None:
        self._whole = np.zeros((3, slots), dtype=np.int32)  # num_logprobs, top_k, prompt_len
        self._real = np.zeros(
            (6, slots), dtype=np.float32
        )  # temperature, top_p, min_p, repetition, frequency, presence
        self._seed = np.zeros(slots, dtype=np.uint64)

    def write(self, slot: int, recipe: Recipe) -> None:
        p = recipe.params
        self._whole[:, slot] = (recipe.num_logprobs, max(0, p.top_k), recipe.prompt_len)
        self._real[:, slot] = (
            p.temperature,
            p.top_p,
            p.min_p,
            p.repetition_penalty,
            p.frequency_penalty,
            p.presence_penalty,
        )
        self._seed[slot] = recipe.seed

    def rows(self, draws: Draws, scores: Scores | None, history: I32, mask_words: int = 0) -> SampleRows:
        """One row a draw, then one row a scored position. `mask_words`: of each row's mask, which allows everything."""
        drawn, count = draws.slot, len(draws.slot)
        extra = 0 if scores is None else len(scores.slot)
        whole, real = np.take(self._whole, drawn, axis=1), np.take(self._real, drawn, axis=1)
        seed = self._seed[drawn]
        if draws.seeds is not None:
            seed = draws.seeds
        index, position, target = draws.index, draws.position, np.full(count, -1, dtype=np.int32)
        if scores is not None:
            neutral = np.array([[0], [1], [0], [1], [0], [0]], dtype=np.float32)
            none = np.zeros(extra, dtype=np.int32)
            whole = np.hstack([whole, np.stack([scores.num_logprobs, none, none])])
            real = np.hstack([real, np.repeat(neutral, extra, axis=1)])
            seed = np.concatenate([seed, np.zeros(extra, dtype=np.uint64)])
            index = np.concatenate([index, scores.index])
            position = np.concatenate([position, scores.position])
            target = np.concatenate([target, scores.target])
            drawn = np.concatenate([drawn, scores.slot])
        ragged = [_ragged(lists, count + extra) for lists in (draws.allowed, draws.banned, draws.bias_ids)]
        return SampleRows(
            index=index,
            target=target,
            num_logprobs=whole[0],
            temperature=real[0],
            top_k=whole[1],
            top_p=real[1],
            min_p=real[2],
            repetition=real[3],
            frequency=real[4],
            presence=real[5],
            seed=seed,
            position=position,
            history=history,
            history_row=drawn,
            prompt_len=whole[2],
            total_len=position if scores is None else np.where(target < 0, position, 0).astype(np.int32),
            allowed_start=ragged[0][0],
            allowed_ids=ragged[0][1],
            banned_start=ragged[1][0],
            banned_ids=ragged[1][1],
            bias_start=ragged[2][0],
            bias_ids=ragged[2][1],
            bias_values=np.concatenate([_NO_VALUES, *draws.bias_values.values()]),
            mask=np.full((count + extra if mask_words else 0, mask_words), 0xFFFFFFFF, dtype=np.uint32),
        )


@dataclass(slots=True)
class Draws:
    """Tokens to draw in one step, as parallel arrays. `seeds` is None where each slot draws once, with its own seed.

    The ragged lists are keyed by row, in growing order; rows that have none are left out.
    """

    slot: I32
    index: I32
    position: I32
    seeds: U64 | None
    allowed: dict[int, I32]
    banned: dict[int, I32]
    bias_ids: dict[int, I32]
    bias_values: dict[int, F32]


@dataclass(slots=True)
class Scores:
    """Prompt positions to score in one step, as parallel arrays."""

    slot: I32
    index: I32
    position: I32
    target: I32
    num_logprobs: I32


def _ragged(lists: dict[int, I32], rows: int) -> tuple[I32, I32]:
    """Starts [rows + 1] and the joined ids."""
    start = np.zeros(rows + 1, dtype=np.int32)
    if not lists:
        return start, _NO_IDS
    for row, ids in lists.items():
        start[row + 1] = len(ids)
    return np.cumsum(start, dtype=np.int32), np.concatenate(list(lists.values()))
