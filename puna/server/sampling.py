"""From a request body to `SamplingParams`: names and defaults of the wire, no tokens, no text.

A field that was not given takes OpenAI's default (temperature 1, top_p 1, n 1; 16 tokens for a text completion, up to
the context for a chat).
"""

from __future__ import annotations

from typing import Any

from puna.engine.params import SamplingParams
from puna.errors import InputError
from puna.server.requests import ChatRequest, Common, CompletionRequest, Drawing
from puna.server.structure import ResponseFormat, TextFormat, form_of

COMPLETION_MAX_TOKENS = 16

# Fields that have the same name and meaning in `SamplingParams`.
_SAME = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "min_tokens",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "truncate_prompt_tokens",
    "seed",
)


def chat_params(body: ChatRequest) -> SamplingParams:
    wanted = given(body, response_format=body.response_format) | _selection(body)
    wanted["max_tokens"] = body.max_tokens if body.max_tokens is not None else body.max_completion_tokens
    if body.logprobs:
        wanted["logprobs"] = body.top_logprobs or 0
    if body.prompt_logprobs is not None:
        wanted["prompt_logprobs"] = body.prompt_logprobs
    return SamplingParams(**wanted)


def completion_params(body: CompletionRequest) -> SamplingParams:
    """`max_tokens: 0` with `echo` becomes one token, which `only_echo` says to drop."""
    wanted = given(body, response_format=body.response_format) | _selection(body)
    wanted["max_tokens"] = COMPLETION_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    if only_echo(body):
        if body.min_tokens:
            raise InputError(
                f"min_tokens is {body.min_tokens} but max_tokens is 0; leave one of them out", param="min_tokens"
            )
        wanted["max_tokens"] = 1
    if body.logprobs is not None:
        wanted["logprobs"] = body.logprobs
    if body.prompt_logprobs is not None:
        wanted["prompt_logprobs"] = body.prompt_logprobs
    if body.echo and body.logprobs is not None:
        wanted["prompt_logprobs"] = max(body.logprobs, body.prompt_logprobs or 0)
    return SamplingParams(**wanted)


def _selection(body: Common) -> dict[str, Any]:
    """best_of or, with use_beam_search, the width: `best_of` beams, or `n` of them where all are returned."""
    named = {"length_penalty": body.length_penalty, "early_stopping": body.early_stopping}
    wanted = {name: value for name, value in named.items() if value is not None}
    if body.use_beam_search:
        return wanted | {"beam_width": body.best_of or body.n or 1}
    return wanted if body.best_of is None else wanted | {"best_of": body.best_of}


def check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """InputError where a parameter names a token that the model does not have."""
    named = {
        "logit_bias": params.logit_bias,
        "allowed_token_ids": params.allowed_token_ids or (),
        "stop_token_ids": params.stop_token_ids,
    }
    for name, ids in named.items():
        for token in ids:
            if not 0 <= token < vocab_size:
                raise InputError(
                    f"{name} has the token id {str(token)[:40]}; this model's ids are 0 to {vocab_size - 1}", param=name
                )


def only_echo(body: CompletionRequest) -> bool:
    return bool(body.echo) and body.max_tokens == 0


def given(body: Drawing, **formats: ResponseFormat | TextFormat | None) -> dict[str, Any]:
    """The fields that say the same in the body and in `SamplingParams`, where they were given, and the form that the
    answer has to take; `formats` as `form_of` has them."""
    wanted = {name: value for name in _SAME if (value := getattr(body, name, None)) is not None}
    if (form := form_of(body, **formats)) is not None:
        wanted["structured_outputs"] = form
    return wanted
