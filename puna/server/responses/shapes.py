"""A response of OpenAI's Responses API and the events of its stream, as structs that msgspec writes."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from puna.server.answers import ChatLogprob
from puna.server.structure import TextFormat

Status = Literal["in_progress", "completed", "incomplete", "failed"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[ChatLogprob] = []


class OutputMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    id: str
    status: ItemStatus
    role: str = "assistant"
    content: list[OutputText]


class ReasoningText(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "reasoning_text"
    text: str


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    id: str
    status: ItemStatus
    summary: list[Any] = []
    content: list[ReasoningText]


class FunctionCallItem(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


Item = OutputMessage | ReasoningItem | FunctionCallItem


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
    effort: str | None = None
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
    output: list[Item]
    parallel_tool_calls: bool = True
    previous_response_id: str | None
    reasoning: ReasoningConfig = ReasoningConfig()
    service_tier: str = "default"
    store: bool
    temperature: float
    text: TextConfig = TextConfig()
    tool_choice: Any = "auto"
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
    item: Item
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


class ReasoningDeltaEvent(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "response.reasoning_text.delta"
    sequence_number: int
    item_id: str
    delta: str
    output_index: int = 0
    content_index: int = 0


class ReasoningDoneEvent(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "response.reasoning_text.done"
    sequence_number: int
    item_id: str
    text: str
    output_index: int = 0
    content_index: int = 0


class ArgumentsDeltaEvent(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "response.function_call_arguments.delta"
    sequence_number: int
    item_id: str
    delta: str
    output_index: int = 0


class ArgumentsDoneEvent(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "response.function_call_arguments.done"
    sequence_number: int
    item_id: str
    name: str
    arguments: str
    output_index: int = 0


Event = (
    ResponseEvent
    | ItemEvent
    | PartEvent
    | DeltaEvent
    | TextDoneEvent
    | ReasoningDeltaEvent
    | ReasoningDoneEvent
    | ArgumentsDeltaEvent
    | ArgumentsDoneEvent
)
