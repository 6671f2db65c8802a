"""What `/v1/messages` takes: Anthropic's fields, beyond them those that all endpoints share, and a chat made of them.

It knows fields; blocks of content are read in blocks.py. What needs images or tools of a server's own is refused.
"""

from __future__ import annotations

from typing import Any

import msgspec

from puna.engine.params import SamplingParams
from puna.server.errors import RequestError
from puna.server.ignored import Ignored
from puna.server.messages.blocks import chat_messages, text_of
from puna.server.requests import Drawing, note_unused, refuse_off_values
from puna.server.sampling import given
from puna.server.structure import TextFormat
from puna.server.tools import message_tools
from puna.server.turn import Speech, Wishes, variables_of

# What a prompt's tokens depend on.
_COUNTED = (
    *("model", "messages", "system", "cache_control"),
    *("tools", "tool_choice", "thinking", "chat_template_kwargs"),
)


class Metadata(msgspec.Struct, frozen=True):
    user_id: str | None = None


class OutputConfig(msgspec.Struct, frozen=True):
    format: TextFormat | None = None
    effort: Any = None


class Asked(Drawing, frozen=True, kw_only=True):
    """What is asked, without how to answer: what `count_tokens` takes."""

    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] | None = None
    cache_control: Any = None
    tools: Any = None
    tool_choice: Any = None
    thinking: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    output_config: OutputConfig | None = None
    output_format: TextFormat | None = None  # where it stood before output_config
    mcp_servers: Any = None
    container: Any = None
    context_management: Any = None
    speed: Any = None


class MessagesRequest(Asked, frozen=True, kw_only=True):
    max_tokens: int
    stop_sequences: list[str] | None = None
    metadata: Metadata | None = None
    service_tier: Any = None
    inference_geo: Any = None


OFF_VALUES: dict[str, tuple[Any, ...]] = {
    "continue_final_message": (None, False),
    "mcp_servers": (None, []),
    "container": (None,),
    "context_management": (None, {}, {"edits": []}),
    "speed": (None, "standard"),
    "service_tier": (None, "auto", "standard_only"),
    "inference_geo": (None,),
    "use_beam_search": (None, False),
    "length_penalty": (None, 1.0),
    "early_stopping": (None, False),
}


def check(body: Asked) -> None:
    """RequestError where the body asks for what this server does not have."""
    refuse_off_values(body, OFF_VALUES)
    if body.output_config is not None and body.output_config.effort is not None:
        raise RequestError(
            "output_config.effort is not supported by this server; leave it out",
            code="unsupported_parameter",
            param="output_config.effort",
        )


def check_count(body: Asked, ignored: Ignored) -> None:
    """As `check`, where tokens are counted only: what says how to answer is named in `ignored`."""
    check(body)
    note_unused(body, _COUNTED, OFF_VALUES, ignored)


def params_of(body: MessagesRequest) -> SamplingParams:
    asked = body.output_config.format if body.output_config else None
    wanted = given(body, output_config__format=asked, output_format=body.output_format)
    wanted["max_tokens"] = body.max_tokens
    if body.stop_sequences:
        wanted["stop"] = body.stop_sequences
    return SamplingParams(**wanted)


def messages_of(body: Asked, ignored: Ignored) -> tuple[list[dict[str, Any]], str]:
    """The chat, and how the answer begins where the last message is the assistant's. RequestError for a block that has
    no place there."""
    chat: list[dict[str, Any]] = []
    for index, message in enumerate(body.messages):
        chat += _messages(f"messages[{index}]", message, ignored)
    prefill = ""
    if len(chat) > 1 and chat[-1]["role"] == "assistant":
        if chat[-1].get("tool_calls"):
            raise RequestError(
                "the last message uses a tool; send its tool_result in a message of the user", param="messages"
            )
        prefill = chat.pop()["content"]
    system = text_of("system", body.system, ignored) if body.system else ""
    return ([{"role": "system", "content": system}] if system else []) + chat, prefill


def wishes_of(body: Asked, speech: Speech, ignored: Ignored, prefill: str) -> Wishes:
    """RequestError where the tools are wrong, or the model cannot think as it is asked to."""
    variables = variables_of(speech, ignored, body.chat_template_kwargs, None)
    thinking = body.thinking
    if thinking is not None:
        kind = thinking.get("type")
        if kind not in ("enabled", "adaptive", "disabled"):
            raise RequestError(
                f"thinking.type is {str(kind)[:40]!r}; allowed: enabled, adaptive, disabled", param="thinking"
            )
        if kind != "disabled" and speech.reasoning is None:
            raise RequestError(
                "thinking is not supported by this model, which marks no reasoning; leave it out",
                code="unsupported_parameter",
                param="thinking",
            )
        for name in thinking.keys() - {"type"}:
            ignored.note(f"thinking.{name}")
        if speech.reads("enable_thinking"):
            variables.setdefault("enable_thinking", kind != "disabled")
    return Wishes(message_tools(body, ignored), variables, prefill)


def _messages(where: str, message: dict[str, Any], ignored: Ignored) -> list[dict[str, Any]]:
    for name in message.keys() - {"role", "content"}:
        ignored.note(f"{where}.{name}")
    role = message.get("role")
    if role not in ("user", "assistant", "system"):
        raise RequestError(
            f"{where}.role is {str(role)[:80]!r}; allowed: user, assistant, system", param=f"{where}.role"
        )
    return chat_messages(f"{where}.content", role, message.get("content"), ignored)
