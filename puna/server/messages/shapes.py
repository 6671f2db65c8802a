"""A message of Anthropic's Messages API, the events of its stream and its errors, as structs that msgspec writes."""

from __future__ import annotations

from typing import Any

import msgspec

from puna.server.errors import HttpFailure

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class TextBlock(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "text"
    text: str
    citations: None = None


class ThinkingBlock(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "thinking"
    thinking: str
    signature: str = ""


class ToolUseBlock(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "tool_use"
    id: str
    name: str
    input: dict[str, Any]


Block = TextBlock | ThinkingBlock | ToolUseBlock


class MessageUsage(msgspec.Struct, frozen=True, kw_only=True):
    """`input_tokens` are those that had to be computed; the others came from the prefix cache."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """`seed` and `system_fingerprint` are ours, as in chat completions."""

    id: str
    type: str = "message"
    role: str = "assistant"
    model: str
    content: list[Block]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage
    system_fingerprint: str
    seed: int | msgspec.UnsetType = msgspec.UNSET
    truncated_tokens: int | msgspec.UnsetType = msgspec.UNSET


class MessageStart(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "message_start"
    message: Message


class ContentBlockStart(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "content_block_start"
    index: int = 0
    content_block: Block


class TextDelta(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "text_delta"
    text: str


class ThinkingDelta(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "thinking_delta"
    thinking: str


class SignatureDelta(msgspec.Struct, frozen=True, kw_only=True):
    """Clients wait for one; it signs nothing."""

    type: str = "signature_delta"
    signature: str = ""


class InputDelta(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "input_json_delta"
    partial_json: str


class ContentBlockDelta(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "content_block_delta"
    index: int = 0
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class ContentBlockStop(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "content_block_stop"
    index: int = 0


class StopDelta(msgspec.Struct, frozen=True):
    stop_reason: str
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "message_delta"
    delta: StopDelta
    usage: MessageUsage


class MessageStop(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "message_stop"


Event = MessageStart | ContentBlockStart | ContentBlockDelta | ContentBlockStop | MessageDelta | MessageStop


class FailureDetail(msgspec.Struct, frozen=True):
    type: str
    message: str


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an error, and the event of one."""

    type: str = "error"
    error: FailureDetail


def anthropic_error(failure: HttpFailure) -> Failure:
    kind = _TYPES.get(failure.status, "invalid_request_error" if failure.status < 500 else "api_error")
    return Failure(error=FailureDetail(kind, failure.message))
