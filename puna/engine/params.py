"""What a request may ask of sampling, and what it gets back: the vocabulary of the engine's border.

`SamplingParams` is validated once, when it is made; from there on the engine trusts it. The structs here travel
between processes (msgspec) and hold plain values only.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from puna.engine.beams import EarlyStopping
from puna.engine.selection import MAX_LENGTH_PENALTY, check_selection
from puna.engine.structure import StructuredOutputs
from puna.errors import InputError

FinishReason = Literal["stop", "length", "abort", "error"]

MAX_LOGPROBS = 256
MAX_SAMPLES = 256
MAX_STOPS = 64
MAX_STOP_CHARS = 1024
MAX_BAD_WORDS = 1024  # each is looked at in every step of every sample
MAX_TOKEN_IDS = 1 << 19  # in one list; no vocabulary is larger


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to draw tokens, field by field as in vLLM's offline API.

    Order of application: allowed tokens, bad words, min tokens, logit bias, repetition, frequency and presence
    penalties, (greedy rows: argmax), temperature, min-p, top-k, top-p, draw. Log-probabilities are of the raw logits.
    """

    n: int = 1  # answers
    temperature: float = 1.0
    top_k: int = 0  # 0 or -1: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] = []
    max_tokens: int | None = 16  # None: up to the context limit
    min_tokens: int = 0
    stop: str | list[str] = []
    stop_token_ids: list[int] = []
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    seed: int | None = None  # child i of n draws with seed + i
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None  # cut a longer prompt to so many; -1: to what the answer leaves
    structured_outputs: StructuredOutputs | None = None
    best_of: int | None = None  # draw so many samples, and return the n of highest mean log-probability
    beam_width: int | None = None  # search instead of drawing: the n best of so many beams
    length_penalty: float = 1.0  # of beams: above 0 favours long answers
    early_stopping: EarlyStopping = False  # of beams: see puna.engine.beams

    def __post_init__(self) -> None:
        _check(self)
        check_selection(self)

    @property
    def samples(self) -> int:
        """Samples that the engine brings: more than n where the best are chosen among them."""
        return self.best_of or self.n

    @property
    def seats(self) -> int:
        """Sequences that run for it at once."""
        return self.beam_width or self.samples

    @property
    def chooses(self) -> bool:
        """Whether samples are drawn that are not returned."""
        return self.samples > self.n

    @property
    def wanted_logprobs(self) -> int | None:
        """As `logprobs`, but that choosing needs those of the tokens that were drawn."""
        return 0 if self.logprobs is None and self.chooses else self.logprobs

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)


def _check(p: SamplingParams) -> None:
    _between("n", p.n, 1, MAX_SAMPLES)
    for name in ("best_of", "beam_width"):
        if getattr(p, name) is not None:
            _between(name, getattr(p, name), 1, MAX_SAMPLES)
    _between("length_penalty", p.length_penalty, -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY)
    if type(p.early_stopping) is not bool and p.early_stopping != "never":
        raise InputError(
            f'early_stopping is {str(p.early_stopping)[:40]!r}; it takes true, false or "never"', param="early_stopping"
        )
    _between("temperature", p.temperature, 0.0, 100.0)
    _between("top_k", p.top_k, -1, 2**31 - 1)
    _between("top_p", p.top_p, 0.0, 1.0, open_low=True)
    _between("min_p", p.min_p, 0.0, 1.0)
    _between("repetition_penalty", p.repetition_penalty, 0.0, 100.0, open_low=True)
    _between("frequency_penalty", p.frequency_penalty, -2.0, 2.0)
    _between("presence_penalty", p.presence_penalty, -2.0, 2.0)
    if p.max_tokens is not None:
        _between("max_tokens", p.max_tokens, 1, 2**31 - 1)
    _between("min_tokens", p.min_tokens, 0, 2**31 - 1)
    if p.max_tokens is not None and p.min_tokens > p.max_tokens:
        raise InputError(
            f"min_tokens is {p.min_tokens} but max_tokens is {p.max_tokens}; lower min_tokens or raise max_tokens",
            param="min_tokens",
        )
    most = p.truncate_prompt_tokens
    if most is not None and (type(most) is not int or not (most == -1 or 1 <= most < 2**31)):
        raise InputError(
            f"truncate_prompt_tokens is {most!r}; it takes a number of tokens from 1 on, or -1 for as many as the "
            "answer leaves",
            param="truncate_prompt_tokens",
        )
    for name in ("logprobs", "prompt_logprobs"):
        value = getattr(p, name)
        if value is not None:
            _between(name, value, 0, MAX_LOGPROBS)
    if p.seed is not None:
        _between("seed", p.seed, -(2**63), 2**64 - 1)
    if len(p.stops) > MAX_STOPS or any(not isinstance(s, str) or not 0 < len(s) <= MAX_STOP_CHARS for s in p.stops):
        raise InputError(f"stop takes up to {MAX_STOPS} strings of 1 to {MAX_STOP_CHARS} characters", param="stop")
    for stop in p.stops:
        if not _is_unicode(stop):
            raise InputError(f"stop has {stop[:40]!r}, which is not valid Unicode text and never comes", param="stop")
    words = p.bad_words
    if len(words) > MAX_BAD_WORDS or any(not isinstance(s, str) or not 0 < len(s) <= MAX_STOP_CHARS for s in words):
        raise InputError(
            f"bad_words takes up to {MAX_BAD_WORDS} strings of 1 to {MAX_STOP_CHARS} characters", param="bad_words"
        )
    for name in ("allowed_token_ids", "stop_token_ids", "logit_bias"):
        if (count := len(getattr(p, name) or ())) > MAX_TOKEN_IDS:
            raise InputError(f"{name} has {count} token ids; the limit is {MAX_TOKEN_IDS}", param=name)
    if p.allowed_token_ids is not None and not p.allowed_token_ids:
        raise InputError("allowed_token_ids is empty: no token could be drawn; leave it out", param="allowed_token_ids")
    for name in ("allowed_token_ids", "stop_token_ids"):
        if any(not isinstance(i, int) or i < 0 for i in getattr(p, name) or ()):
            raise InputError(f"{name} takes token ids of 0 and above", param=name)
    for token, value in p.logit_bias.items():
        if token < 0 or not -100.0 <= value <= 100.0:
            raise InputError(
                f"logit_bias[{token}] is {value}; ids are 0 and above, values -100 to 100", param="logit_bias"
            )


def _is_unicode(text: str) -> bool:
    """Not so for half of a surrogate pair, as bytes of a command line that are not UTF-8 are read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _between(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    lowest, highest = (str(bound) if isinstance(bound, int) else f"{bound:g}" for bound in (low, high))
    wanted = f"above {lowest} and up to {highest}" if open_low else f"{lowest} to {highest}"
    whole = isinstance(low, int)
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not math.isfinite(value):
        raise InputError(
            f"{name} is {value!r}; it takes {'a whole number' if whole else 'a number'}, {wanted}", param=name
        )
    if value > high or value < low or (open_low and value == low):
        raise InputError(f"{name} is {value!r}; allowed: {wanted}", param=name)


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log-probability of one token under the raw logits; rank 1 is the most likely."""

    token_id: int
    logprob: float
    rank: int


class PositionLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Of one position: the token that stands there, and the k most likely ones, best first."""

    token: TokenLogprob
    top: list[TokenLogprob]


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What the client sends. `params.seed` is always set (drawn by the client where the user gave none).

    `eos_token_ids` end a sample unless `params.ignore_eos`. `bad_word_ids`: each bad word as the token sequences that
    spell it. The last three are for going on after an engine died (beams begin anew then: nothing of them was
    delivered). `delivered[i]`: tokens of sample i that the client already has, behind which generation goes on.
    `done`: samples that ended before and are not drawn again. `admitted`: an engine took it before, so that the queue
    takes it however full it is.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    eos_token_ids: list[int] = []
    bad_word_ids: list[list[int]] = []
    priority: int = 0
    cache_salt: str = ""
    tenant: str = ""
    delivered: list[list[int]] = []
    done: list[int] = []
    admitted: bool = False


class SampleUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """New tokens of one sample in one step; of an answer that beams found, all tokens at once. Where
    `finish_reason` is "stop", the last of `token_ids` ended it: `stop_token_id` names it if it is one of
    `stop_token_ids`, and is None if it is an end-of-sequence token."""

    request_id: str
    index: int  # sample number, 0 .. n-1
    token_ids: list[int]
    logprobs: list[PositionLogprobs] | None = None
    prompt_logprobs: list[PositionLogprobs | None] | None = None  # with the first token only; first entry None
    seed: int | None = None  # what this sample draws with, unless it is greedy; with the first token only
    cached_tokens: int | None = None  # with the first token only: prompt tokens that came from the prefix cache
    queue_s: float | None = None  # with the first token only: from its arrival in the engine to its first step
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    error: str | None = None
    score: float | None = None  # of an answer that beams found
    discarded_tokens: int = 0  # drawn for answers that are not returned; with the first news of a request
    searched_tokens: int = 0  # how far beams have come that bring nothing yet; then there is nothing else in it
