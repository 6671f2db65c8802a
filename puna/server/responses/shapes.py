"""A response of OpenAI's Responses API and the events of its stream, as structs that msgspec writes."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from puna.server.answers import ChatLogprob
from puna.server.structure import TextFormat

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[ChatLogprob] = []


class OutputMessage(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: str = "message"
    status: Status
    role: str = "assistant"
    content: list[OutputText]


class InputTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class OutputTokensDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, frozen=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(msgspec.Struct, frozen=True):
    code: str
    message: str


class IncompleteDetails(msgspec.Struct, frozen=True):
    """`reason`: "max_output_tokens" (or the context is full), or "deadline"."""

    reason: str


class TextConfig(msgspec.Struct, frozen=True):
    """`format`: as it was asked for."""

    format: TextFormat = TextFormat(type="text")


class ReasoningConfig(msgspec.Struct, frozen=True):
    effort: None = None
    summary: None = None


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """`seed`, `system_fingerprint` and `truncated_tokens` are ours, as in chat completions."""

    id: str
    object: str = "response"
    created_at: int
    completed_at: int | None = None
    status: Status
    background: bool = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None = None
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: bool = True
    previous_response_id: str | None
    reasoning: ReasoningConfig = ReasoningConfig()
    service_tier: str = "default"
    store: bool
    temperature: float
    text: TextConfig = TextConfig()
    tool_choice: str = "auto"
    tools: list[Any] = []
    top_logprobs: int
    top_p: float
    truncation: str
    usage: ResponseUsage | None = None
    user: str | None
    metadata: dict[str, str]
    system_fingerprint: str
    seed: int | msgspec.UnsetType = msgspec.UNSET
    truncated_tokens: int | msgspec.UnsetType = msgspec.UNSET


class ResponseEvent(msgspec.Struct, frozen=True):
    type: str
    sequence_number: int
    response: Response


class ItemEvent(msgspec.Struct, frozen=True):
    type: str
    sequence_number: int
    item: OutputMessage
    output_index: int = 0


class PartEvent(msgspec.Struct, frozen=True):
    type: str
    sequence_number: int
    item_id: str
    part: OutputText
    output_index: int = 0
    content_index: int = 0


class DeltaEvent(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "response.output_text.delta"
    sequence_number: int
    item_id: str
    delta: str
    logprobs: list[ChatLogprob]
    output_index: int = 0
    content_index: int = 0


class TextDoneEvent(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "response.output_text.done"
    sequence_number: int
    item_id: str
    text: str
    logprobs: list[ChatLogprob]
    output_index: int = 0
    content_index: int = 0


Event = ResponseEvent | ItemEvent | PartEvent | DeltaEvent | TextDoneEvent
