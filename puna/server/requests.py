"""The request bodies this server takes, field by field.

Field names are OpenAI's and, beyond those, vLLM's. `null` means "not given". What becomes of a name that is not here is
said in ignored.py. Fields of features that are off are listed in `OFF_VALUES` with the values that ask for nothing; any
other value of theirs is refused, strict or not: an answer without them would be another one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from puna.server.errors import RequestError
from puna.server.ignored import Ignored
from puna.server.structure import Guided, ResponseFormat


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class Drawing(Guided, frozen=True, kw_only=True):
    """What every endpoint that draws tokens takes, beyond what its own protocol has: how to draw, when to end."""

    model: str | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    seed: int | None = None
    priority: int | None = None
    cache_salt: str | None = None
    deadline_s: float | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    # Fields of other servers whose features are not here.
    chat_template: Any = None
    chat_template_kwargs: Any = None
    continue_final_message: Any = None
    logits_processors: Any = None


class Common(Drawing, frozen=True, kw_only=True):
    """What chat and text completions share."""

    stream_options: StreamOptions | None = None
    n: int | None = None
    best_of: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    response_format: ResponseFormat | None = None
    # Accepted, without effect on the answer: they name the caller, or say how to cache, which happens anyway.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class ChatRequest(Common, frozen=True, kw_only=True):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    service_tier: Any = None
    store: Any = None
    metadata: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    verbosity: Any = None
    web_search_options: Any = None


class CompletionRequest(Common, frozen=True, kw_only=True):
    prompt: str | list[Any]
    echo: bool | None = None
    logprobs: int | None = None
    suffix: Any = None


OFF_VALUES: dict[str, tuple[Any, ...]] = {
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "metadata": (None, {}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "verbosity": (None,),
    "web_search_options": (None,),
    "suffix": (None, ""),
    "chat_template": (None,),
    "logits_processors": (None, []),
}
# What has a meaning for a chat only.
COMPLETION_OFF_VALUES: dict[str, tuple[Any, ...]] = {
    "chat_template_kwargs": (None, {}),
    "continue_final_message": (None, False),
}


_SHARED_OFF_VALUES = {name: OFF_VALUES[name] for name in Drawing.__struct_fields__ if name in OFF_VALUES}


def refuse_unsupported(body: ChatRequest | CompletionRequest) -> None:
    """RequestError where the body asks for a feature that this server does not have, or contradicts itself."""
    refuse_off_values(body, OFF_VALUES)
    if isinstance(body, CompletionRequest):
        refuse_off_values(body, COMPLETION_OFF_VALUES)
    if body.stream_options is not None:
        if not body.stream:
            raise RequestError("stream_options is for streams; add stream=true or leave it out", param="stream_options")
        if body.stream_options.include_obfuscation:
            raise _unsupported(
                "include_obfuscation is not supported; leave it out", "stream_options.include_obfuscation"
            )
        if body.stream_options.continuous_usage_stats and body.stream_options.include_usage is False:
            raise RequestError(
                "continuous_usage_stats is true and include_usage is false; leave one of them out",
                param="stream_options.continuous_usage_stats",
            )
    if isinstance(body, ChatRequest):
        _check_chat(body)
    if body.stream and (body.use_beam_search or (body.best_of or 0) > (body.n or 1)):
        what = "use_beam_search" if body.use_beam_search else "best_of"
        raise RequestError(
            f"which answers are returned is known when all are done, so {what} cannot be streamed; leave out stream",
            param="stream",
        )


def refuse_off_values(body: msgspec.Struct, off_values: dict[str, tuple[Any, ...]]) -> None:
    """RequestError where a field of a feature that is off has a value that asks for something: one of `off_values`, or
    one that all who draw tokens share."""
    for name, allowed in {**_SHARED_OFF_VALUES, **off_values}.items():
        value = getattr(body, name, None)
        if not any(type(value) is type(off) and value == off for off in allowed):
            accepted = ", ".join(msgspec.json.encode(off).decode() for off in allowed)
            raise _unsupported(f"{name} is not supported by this server; leave it out (accepted: {accepted})", name)


def note_unused(
    body: msgspec.Struct, used: Iterable[str], off_values: dict[str, tuple[Any, ...]], ignored: Ignored
) -> None:
    """Where nothing is drawn: names in `ignored` the fields that were given and change nothing. Those are all but
    `used`, and but those that were checked to ask for nothing."""
    spared = {*used, *_SHARED_OFF_VALUES, *off_values}
    for name in body.__struct_fields__:
        if name not in spared and getattr(body, name) is not None:
            ignored.note(name, "has no effect where nothing is answered")


def _check_chat(body: ChatRequest) -> None:
    if body.top_logprobs is not None:
        if not body.logprobs:
            raise RequestError("top_logprobs needs logprobs=true", param="top_logprobs")
        if not 0 <= body.top_logprobs <= 20:
            raise RequestError(f"top_logprobs is {body.top_logprobs}; allowed: 0 to 20", param="top_logprobs")
    both = body.max_tokens, body.max_completion_tokens
    if None not in both and both[0] != both[1]:
        raise RequestError(
            f"max_tokens is {both[0]} and max_completion_tokens is {both[1]}; they mean the same, give one",
            param="max_completion_tokens",
        )


def _unsupported(message: str, param: str) -> RequestError:
    return RequestError(message, code="unsupported_parameter", param=param)
