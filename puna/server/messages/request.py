"""What `/v1/messages` takes: Anthropic's fields, beyond them those that all endpoints share, and a chat made of them.

It knows the wire's shapes of content blocks; it knows no model. What needs tools, images or thinking is refused.
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

_BLOCK_FIELDS = {"type", "text", "cache_control", "citations"}  # a prompt is cached as far as it repeats, asked or not


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
    thinking: Any = None
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
    "tools": (None, []),
    "tool_choice": (None, {"type": "none"}, {"type": "auto"}),
    "thinking": (None, {"type": "disabled"}),
    "mcp_servers": (None, []),
    "container": (None,),
    "context_management": (None, {}, {"edits": []}),
    "speed": (None, "standard"),
    "service_tier": (None, "auto", "standard_only"),
    "inference_geo": (None,),
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
    note_unused(body, ("model", "messages", "system", "cache_control"), OFF_VALUES, ignored)


def params_of(body: MessagesRequest) -> SamplingParams:
    asked = body.output_config.format if body.output_config else None
    wanted = given(body, output_config__format=asked, output_format=body.output_format)
    wanted["max_tokens"] = body.max_tokens
    if body.stop_sequences:
        wanted["stop"] = body.stop_sequences
    return SamplingParams(**wanted)


def messages_of(body: Asked, ignored: Ignored) -> tuple[list[dict[str, Any]], str]:
    """The chat, and how the answer begins where the last message is the assistant's. RequestError for a block that is
    no text."""
    chat = [_message(f"messages[{index}]", message, ignored) for index, message in enumerate(body.messages)]
    prefill = chat.pop()["content"] if len(chat) > 1 and chat[-1]["role"] == "assistant" else ""
    system = _text("system", body.system, ignored) if body.system else ""
    return ([{"role": "system", "content": system}] if system else []) + chat, prefill


def _message(where: str, message: dict[str, Any], ignored: Ignored) -> dict[str, Any]:
    for name in message.keys() - {"role", "content"}:
        ignored.note(f"{where}.{name}")
    role = message.get("role")
    if role not in ("user", "assistant", "system"):
        raise RequestError(
            f"{where}.role is {str(role)[:80]!r}; allowed: user, assistant, system", param=f"{where}.role"
        )
    return {"role": role, "content": _text(f"{where}.content", message.get("content"), ignored)}


def _text(where: str, content: Any, ignored: Ignored) -> str:
    """Of a string, or of blocks, which are read as one text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where} takes a string or a list of text blocks", param=where)
    texts = []
    for position, block in enumerate(content):
        at = f"{where}[{position}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if kind != "text" or not isinstance(block.get("text"), str):
            raise RequestError(
                f"{at} is of the type {str(kind)[:40]!r}; this server reads blocks of text only: "
                "{'type': 'text', 'text': '...'}",
                code="unsupported_parameter",
                param=at,
            )
        for name in block.keys() - _BLOCK_FIELDS:
            ignored.note(f"{at}.{name}")
        if block.get("citations"):
            ignored.note(f"{at}.citations", "has no effect on a text")
        texts.append(block["text"])
    return "\n".join(texts)
