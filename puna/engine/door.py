"""Checks a request before it costs anything.

Everything that the engine will assume later is refused here, with an InputError that names the field, the limit and the
remedy. Single values were checked when the parameters were made; this looks at them together and against the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from puna.engine.params import EngineRequest
from puna.errors import InputError
from puna.sched.group import longest_len

MAX_PROMPT_SCORES = 1 << 20  # log-probabilities that one request may want of its prompt; all come in one message


@dataclass(frozen=True)
class DoorLimits:
    """What the model and the engine's configuration allow."""

    vocab_size: int
    max_model_len: int
    max_seqs: int
    usable_blocks: int
    block_size: int


def room_for_output(request: EngineRequest, limits: DoorLimits) -> int:
    """Most tokens that a sample of a checked request may have: `max_tokens`, or what the context and, for those with
    forks, the pool leaves."""
    p, prompt_len = request.params, len(request.prompt_token_ids)
    room = limits.max_model_len - prompt_len
    if p.max_tokens is not None:
        return min(room, p.max_tokens)
    if p.seats == 1:
        return room
    longest = longest_len(prompt_len, p.seats, limits.usable_blocks, limits.block_size)
    return max(1, min(room, longest - prompt_len))  # those that run together have to fit into the pool together


def check_request(request: EngineRequest, limits: DoorLimits) -> None:
    """InputError where the request cannot be served as asked."""
    if not request.request_id:
        raise InputError("request_id is empty; give every request its own", param="request_id")
    _check_lengths(request, limits)
    p = request.params
    _check_seats(request, limits)
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


def _check_seats(request: EngineRequest, limits: DoorLimits) -> None:
    p = request.params
    name = "beam_width" if p.beam_width else "best_of" if p.chooses else "n"
    if p.seats > limits.max_seqs:
        raise InputError(
            f"{name} is {p.seats}, but this engine runs {limits.max_seqs} sequences at once; lower {name} or raise "
            "max_seqs",
            param=name,
        )
    if p.beam_width and p.beam_width > limits.vocab_size - len({*request.eos_token_ids, *p.stop_token_ids}):
        raise InputError(
            f"beam_width is {p.beam_width}, but this model has {limits.vocab_size} tokens, those that end an answer "
            "included, and each beam begins with another; lower it",
            param=name,
        )
    if p.beam_width and (any(request.delivered) or request.done):
        raise InputError(
            "beams begin anew, so nothing of them can have been delivered; leave it out", param="delivered"
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
    samples = request.params.samples
    drawn = f"{'best_of' if request.params.chooses else 'n'} is {samples}"
    if len(request.delivered) > samples:
        raise InputError(f"delivered has {len(request.delivered)} samples, but {drawn}", param="delivered")
    if any(not 0 <= index < samples for index in request.done) or len(set(request.done)) >= samples:
        raise InputError(
            f"done names samples {request.done[:10]}, but {drawn}, and one has to be left to draw",
            param="done",
        )
    room = room_for_output(request, limits)
    for index, tokens in enumerate(request.delivered):
        _check_ids("delivered", tokens, limits)
        if len(tokens) > room:
            raise InputError(
                f"delivered[{index}] has {len(tokens)} tokens, but a sample may have {room}", param="delivered"
            )
