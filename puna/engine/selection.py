"""Answers that are chosen among more than are returned: best_of and beam search, as they are asked for.

Checks what belongs together, and ranks samples for best_of: the highest mean log-probability of a token, its end
included, as OpenAI has it; of equal ones the lowest sample. Knows parameters and numbers; beams.py searches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from puna.errors import InputError

if TYPE_CHECKING:
    from puna.engine.params import PositionLogprobs, SamplingParams

MAX_LENGTH_PENALTY = 10.0

# What says how to draw, or changes what is likely. Beams take what the model finds likeliest, and draw nothing.
_UNBENT: dict[str, tuple[Any, ...]] = {
    "temperature": (0, 1),  # neither changes a log-probability
    "top_k": (0, -1),
    "top_p": (1,),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "allowed_token_ids": (None,),
    "bad_words": ([],),
    "structured_outputs": (None,),
}


def check_selection(p: SamplingParams) -> None:
    """InputError where best_of, beams and the rest contradict each other. Single values are in range by now."""
    if p.beam_width is None:
        if p.best_of is not None and p.best_of < p.n:
            raise InputError(
                f"best_of is {p.best_of} but n is {p.n}; as many as are returned have to be drawn: raise best_of or "
                "lower n",
                param="best_of",
            )
        for name, off in (("length_penalty", 1), ("early_stopping", False)):
            if getattr(p, name) != off:
                raise InputError(
                    f"{name} is for beam search; set beam_width (use_beam_search over HTTP), or leave it out",
                    param=name,
                )
        return
    if p.beam_width < p.n:
        raise InputError(
            f"n is {p.n} but the beam width is {p.beam_width}, and no more answers than beams are kept; lower n or "
            "raise the width",
            param="n",
        )
    if p.best_of is not None:
        raise InputError("best_of chooses among samples, and beams are none; leave it out", param="best_of")
    for name, allowed in _UNBENT.items():
        if (value := getattr(p, name)) not in allowed:
            shown = " or ".join(f"{value}" for value in allowed)
            raise InputError(
                f"beam search takes the likeliest answers as the model finds them, so {name} {str(value)[:40]} cannot "
                f"be had with it; leave it out (or {shown}), or leave out the beams",
                param=name,
            )
    if p.stops:
        raise InputError(
            "beam search ends answers at token ids only, so stop cannot be had with it; use stop_token_ids, or leave "
            "out the beams",
            param="stop",
        )


def mean_logprob(logprobs: Sequence[PositionLogprobs]) -> float:
    """What best_of ranks by; minus infinity for an answer without tokens."""
    return sum(entry.token.logprob for entry in logprobs) / len(logprobs) if logprobs else -math.inf


def best(scores: Iterable[float], count: int) -> list[int]:
    """Places of the `count` highest scores, the highest first."""
    ranked = sorted(enumerate(scores), key=lambda one: (-one[1], one[0]))
    return [place for place, _ in ranked[:count]]
