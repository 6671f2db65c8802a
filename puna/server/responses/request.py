"""What `/v1/responses` takes: OpenAI's fields, and beyond them those that all endpoints share.

It knows fields; input is read in input_items.py. It knows no model and no stored response.
"""

from __future__ import annotations

from typing import Any

import msgspec

from puna.engine.params import SamplingParams
from puna.server.errors import RequestError
from puna.server.ignored import Ignored
from puna.server.requests import Drawing, note_unused, refuse_off_values
from puna.server.sampling import given
from puna.server.structure import TextFormat
from puna.server.tools import response_tools
from puna.server.turn import Speech, Wishes, variables_of

MAX_METADATA = 16
MAX_METADATA_CHARS = 512
LOGPROBS = "message.output_text.logprobs"
# What may be asked for beside the text, of kinds that this server does not make: there is nothing to add.
_EMPTY_INCLUDES = {
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
}
# What an input's tokens depend on, and what was checked to ask for nothing.
_COUNTED = (
    *("model", "input", "instructions", "previous_response_id", "truncation", "text", "reasoning"),
    *("tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs"),
)


class TextOptions(msgspec.Struct, frozen=True):
    format: TextFormat | None = None
    verbosity: Any = None


class Reasoning(msgspec.Struct, frozen=True):
    effort: str | None = None
    summary: Any = None
    generate_summary: Any = None


class Obfuscation(msgspec.Struct, frozen=True):
    """All that a stream of responses can be asked; its last event has the usage anyway."""

    include_obfuscation: bool | None = None


class ResponsesRequest(Drawing, frozen=True, kw_only=True):
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    truncation: str | None = None
    metadata: dict[str, str] | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    stop: str | list[str] | None = None
    stream_options: Obfuscation | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    max_tool_calls: Any = None
    background: Any = None
    conversation: Any = None
    context_management: Any = None
    prompt: Any = None
    service_tier: Any = None
    moderation: Any = None
    # Accepted, without effect on the answer: they name the caller, or say how to cache, which happens anyway.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: Any = None


OFF_VALUES: dict[str, tuple[Any, ...]] = {
    "continue_final_message": (None, False),
    "max_tool_calls": (None,),
    "background": (None, False),
    "conversation": (None,),
    "context_management": (None, []),
    "prompt": (None,),
    "service_tier": (None, "auto", "default"),
    "moderation": (None,),
    "use_beam_search": (None, False),
    "length_penalty": (None, 1.0),
    "early_stopping": (None, False),
}


def check(body: ResponsesRequest, ignored: Ignored) -> None:
    """RequestError where the body asks for what this server does not have, or has a value out of range."""
    refuse_off_values(body, OFF_VALUES)
    text = body.text
    if text is not None and text.verbosity is not None:
        raise _unsupported("text.verbosity is not supported by this server; leave it out", "text.verbosity")
    if body.stream_options is not None and body.stream_options.include_obfuscation:
        raise _unsupported("include_obfuscation is not supported; leave it out", "stream_options.include_obfuscation")
    if body.truncation not in (None, "auto", "disabled"):
        raise RequestError(f"truncation is {body.truncation[:40]!r}; allowed: auto, disabled", param="truncation")
    if body.truncate_prompt_tokens is not None and (
        body.truncation == "disabled" or (body.truncation == "auto" and body.truncate_prompt_tokens != -1)
    ):
        raise RequestError(
            f"truncation is {body.truncation!r} and truncate_prompt_tokens is {body.truncate_prompt_tokens}, which is "
            "something else; give one",
            param="truncate_prompt_tokens",
        )
    if body.top_logprobs is not None and not 0 <= body.top_logprobs <= 20:
        raise RequestError(f"top_logprobs is {body.top_logprobs}; allowed: 0 to 20", param="top_logprobs")
    for name in body.include or ():
        if name not in _EMPTY_INCLUDES and name != LOGPROBS:
            ignored.note(f"include.{name}")
    metadata = body.metadata or {}
    if len(metadata) > MAX_METADATA or any(
        len(name) > 64 or len(value) > MAX_METADATA_CHARS for name, value in metadata.items()
    ):
        raise RequestError(
            f"metadata takes up to {MAX_METADATA} entries, names of up to 64 characters and values of up to "
            f"{MAX_METADATA_CHARS}",
            param="metadata",
        )


def check_count(body: ResponsesRequest, ignored: Ignored) -> None:
    """As `check`, where tokens are counted only: what says how to answer is named in `ignored`."""
    check(body, ignored)
    cutting = ("truncate_prompt_tokens", "max_output_tokens", "min_tokens") if is_cut(body) else ()
    note_unused(body, (*_COUNTED, *cutting), OFF_VALUES, ignored)


def is_cut(body: ResponsesRequest) -> bool:
    """Whether an input that is too long is to be cut."""
    return body.truncation == "auto" or body.truncate_prompt_tokens is not None


def wants_logprobs(body: ResponsesRequest) -> bool:
    return body.top_logprobs is not None or LOGPROBS in (body.include or ())


def params_of(body: ResponsesRequest) -> SamplingParams:
    wanted = given(body, text__format=body.text.format if body.text else None)
    wanted["max_tokens"] = body.max_output_tokens
    if wants_logprobs(body):
        wanted["logprobs"] = body.top_logprobs or 0
    if body.truncation == "auto":
        wanted.setdefault("truncate_prompt_tokens", -1)
    return SamplingParams(**wanted)


def wishes_of(body: ResponsesRequest, speech: Speech, ignored: Ignored) -> Wishes:
    """RequestError where the tools are wrong, or the model cannot reason as it is asked to."""
    effort = body.reasoning.effort if body.reasoning else None
    variables = variables_of(speech, ignored, body.chat_template_kwargs, effort, "reasoning.effort")
    return Wishes(response_tools(body, ignored), variables)


def _unsupported(message: str, param: str) -> RequestError:
    return RequestError(message, code="unsupported_parameter", param=param)
