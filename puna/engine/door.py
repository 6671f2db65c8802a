"""Checks a request before it costs anything.

Everything that the engine will assume later is refused here, with an InputError that names the field, the limit and the
remedy. Single values were checked when the parameters were made; this looks at them together and against the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from puna.engine.params import EngineRequest
from puna.errors import InputError

MAX_PROMPT_SCORES = 1 << 20  # log-probabilities that one request may want of its prompt; all come in one message


@dataclass(frozen=True)
class DoorLimits:
    """What the model and the engine's configuration allow."""

    vocab_size: int
    max_model_len: int
    max_seqs: int


def room_for_output(request: EngineRequest, limits: DoorLimits) -> int:
    """Most tokens that a sample of a checked request may have."""
    room = limits.max_model_len - len(request.prompt_token_ids)
    return room if request.params.max_tokens is None else min(room, request.params.max_tokens)


def check_request(request: EngineRequest, limits: DoorLimits) -> None:
    """InputError where the request cannot be served as asked."""
    if not request.request_id:
        raise InputError("request_id is empty; give every request its own", param="request_id")
    _check_lengths(request, limits)
    p = request.params
    if p.n > limits.max_seqs:
        raise InputError(
            f"n is {p.n}, but this engine runs {limits.max_seqs} sequences at once; lower n or raise max_seqs",
            param="n",
        )
    _check_prompt_scores(request)
    _check_ids("prompt", request.prompt_token_ids, limits)
    _check_ids("stop_token_ids", p.stop_token_ids, limits)
    _check_ids("allowed_token_ids", p.allowed_token_ids or (), limits)
    _check_ids("logit_bias", p.logit_bias, limits)
    _check_ids("eos_token_ids", request.eos_token_ids, limits)
    for word in request.bad_word_ids:
        if not word:
            raise InputError("bad_words has a word without tokens; leave it out", param="bad_words")
        _check_ids("bad_words", word, limits)
    _check_contradictions(request)
    _check_delivered(request, limits)


def _check_lengths(request: EngineRequest, limits: DoorLimits) -> None:
    p, prompt_len, context = request.params, len(request.prompt_token_ids), limits.max_model_len
    if prompt_len == 0:
        raise InputError("the prompt is empty; give at least one token", param="prompt")
    if prompt_len >= context:
        raise InputError(
            f"the prompt has {prompt_len} tokens, but the context is {context} tokens, of which at least one is for "
            "the answer; shorten the prompt, or let it be cut with truncate_prompt_tokens (on the command line "
            "--truncate-prompt-tokens -1)",
            param="prompt",
        )
    room = context - prompt_len
    if p.max_tokens is not None and p.max_tokens > room:
        raise InputError(
            f"the prompt has {prompt_len} tokens and max_tokens asks for {p.max_tokens} more, but the context is "
            f"{context} tokens; lower max_tokens to {room}, leave it out, or shorten the prompt",
            param="max_tokens",
        )
    if p.min_tokens > room:
        raise InputError(
            f"min_tokens is {p.min_tokens}, but after a prompt of {prompt_len} tokens the context of {context} has "
            f"room for {room}; lower min_tokens or shorten the prompt",
            param="min_tokens",
        )


def _check_prompt_scores(request: EngineRequest) -> None:
    wanted, prompt_len = request.params.prompt_logprobs, len(request.prompt_token_ids)
    if wanted is not None and (scores := prompt_len * (wanted + 1)) > MAX_PROMPT_SCORES:
        raise InputError(
            f"prompt_logprobs is {wanted}, which makes {scores} log-probabilities for a prompt of {prompt_len} tokens, "
            f"above the limit of {MAX_PROMPT_SCORES}; lower it to {max(0, MAX_PROMPT_SCORES // prompt_len - 1)}, or "
            "shorten the prompt",
            param="prompt_logprobs",
        )


def _check_ids(name: str, ids: Iterable[int], limits: DoorLimits) -> None:
    for token in ids:
        if not 0 <= token < limits.vocab_size:
            raise InputError(
                f"{name} has the token id {token}; this model's ids are 0 to {limits.vocab_size - 1}", param=name
            )


def _check_contradictions(request: EngineRequest) -> None:
    p = request.params
    allowed = set(p.allowed_token_ids or ())
    if not allowed:
        return
    if allowed <= {word[0] for word in request.bad_word_ids if len(word) == 1}:
        raise InputError("bad_words forbids every one of allowed_token_ids; allow another token", param="bad_words")
    ends = set(p.stop_token_ids) | set(() if p.ignore_eos else request.eos_token_ids)
    if p.min_tokens and allowed <= ends:
        raise InputError(
            "allowed_token_ids has only ids that end the answer, but min_tokens forbids those at first; allow another "
            "token or set min_tokens=0",
            param="min_tokens",
        )


def _check_delivered(request: EngineRequest, limits: DoorLimits) -> None:
    if len(request.delivered) > request.params.n:
        raise InputError(
            f"delivered has {len(request.delivered)} samples, but n is {request.params.n}", param="delivered"
        )
    if any(not 0 <= index < request.params.n for index in request.done) or len(set(request.done)) >= request.params.n:
        raise InputError(
            f"done names samples {request.done[:10]}, but n is {request.params.n}, and one has to be left to draw",
            param="done",
        )
    room = room_for_output(request, limits)
    for index, tokens in enumerate(request.delivered):
        _check_ids("delivered", tokens, limits)
        if len(tokens) > room:
            raise InputError(
                f"delivered[{index}] has {len(tokens)} tokens, but a sample may have {room}", param="delivered"
            )
