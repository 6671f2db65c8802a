"""From a prompt and its parameters to the EngineRequest that goes to the engine.

The one place that draws a seed where none was given, spells bad words as tokens and knows which ids end an answer.
Needs a tokenizer; knows no engine.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import msgspec

from puna.engine.params import EngineRequest, SamplingParams

if TYPE_CHECKING:
    from puna.models.tokenizer import Tokenizer


def make_request(
    tokenizer: Tokenizer,
    request_id: str,
    prompt_token_ids: list[int],
    params: SamplingParams,
    *,
    priority: int = 0,
    cache_salt: str = "",
    tenant: str = "",
    delivered: list[list[int]] | None = None,
) -> EngineRequest:
    """A request that can be replayed exactly: its seed is set (below 2^53, so that any JSON reader keeps it whole)."""
    if params.seed is None:
        params = msgspec.structs.replace(params, seed=secrets.randbits(53))
    return EngineRequest(
        request_id=request_id,
        prompt_token_ids=prompt_token_ids,
        params=params,
        eos_token_ids=list(tokenizer.eos_ids),
        bad_word_ids=spell_bad_words(tokenizer, params.bad_words),
        priority=priority,
        cache_salt=cache_salt,
        tenant=tenant,
        delivered=delivered or [],
    )


def spell_bad_words(tokenizer: Tokenizer, words: list[str]) -> list[list[int]]:
    """Each word as the tokens that spell it at the start of a text and behind a space. Other spellings of a word by
    shorter tokens stay possible."""
    spelled: dict[tuple[int, ...], None] = {}
    for word in words:
        for text in (word, " " + word.lstrip()):
            ids = tokenizer.encode(text, add_special=False, parse_special=False)
            if ids:
                spelled[tuple(ids)] = None
    return [list(ids) for ids in spelled]
