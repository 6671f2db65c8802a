"""Deltas of an answer become the typed events of a response, in OpenAI's order, and the last event is the whole answer.

Created, in progress; items with what they say; completed or incomplete. It knows that order; items write their own
events, and it knows nothing of HTTP, the engine or where responses are stored.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from puna.models.calls.pieces import Content, Piece
from puna.server.chat_messages import call_of
from puna.server.conversation import Conversation
from puna.server.deltas import DEADLINE, Delta
from puna.server.errors import HttpFailure
from puna.server.logprobs import chat_logprobs
from puna.server.responses.items import ItemWriter
from puna.server.responses.shapes import (
    Event,
    FunctionCallItem,
    IncompleteDetails,
    InputTokensDetails,
    Item,
    OutputMessage,
    OutputTokensDetails,
    ReasoningItem,
    Response,
    ResponseError,
    ResponseEvent,
    ResponseUsage,
    Status,
)

if TYPE_CHECKING:
    from puna.models.tokenizer import Tokenizer


class ResponseStream:
    """One response while it is written. `done` is told the whole of it just before its reader is, and gives what the
    reader is told."""

    def __init__(
        self,
        conversation: Conversation,
        opening: Response,
        tokenizer: Tokenizer,
        done: Callable[[Response], Awaitable[Response]],
    ) -> None:
        self._conversation = conversation
        self._opening = opening
        self._tokenizer = tokenizer
        self._done = done
        self._count = 0
        self._items = ItemWriter(self._next)

    async def events(self) -> AsyncGenerator[Event]:
        """Begins when the first delta is there, so that a refused request has no event."""
        last: Delta | None = None
        seed: int | UnsetType = UNSET
        async with aclosing(self._conversation.deltas) as deltas:
            async for last in deltas:
                if not self._count:
                    for event in self._begin():
                        yield event
                seed = seed if last.seed is None else last.seed
                self._conversation.count.add(last)
                for event in self._said(last):
                    yield event
        assert last is not None, "an answer has at least a finish"
        reason = None
        if last.finish_reason == "length":
            reason = DEADLINE if last.stop_reason == DEADLINE else "max_output_tokens"
        for event in self._items.end("incomplete" if reason else "completed"):
            yield event
        whole = replace(self._so_far("incomplete" if reason else "completed"), seed=seed, completed_at=int(time.time()))
        if reason:
            whole = replace(whole, incomplete_details=IncompleteDetails(reason))
        whole = await self._done(whole)
        yield ResponseEvent(f"response.{whole.status}", self._next(), whole)

    def failed(self, failure: HttpFailure) -> ResponseEvent:
        """The last event of a stream that breaks in the middle."""
        code = "rate_limit_exceeded" if failure.status == 429 else "server_error"
        broken = replace(self._so_far("failed"), error=ResponseError(code, failure.message))
        return ResponseEvent("response.failed", self._next(), broken)

    def _begin(self) -> Iterator[Event]:
        yield ResponseEvent("response.created", self._next(), self._opening)
        yield ResponseEvent("response.in_progress", self._next(), self._opening)
        if self._conversation.parts is None:
            yield from self._items.open_message()

    def _said(self, delta: Delta) -> Iterator[Event]:
        logprobs = chat_logprobs(self._tokenizer, delta.logprobs).content if delta.logprobs else []
        parts = self._conversation.parts
        if parts is None:
            pieces: list[Piece] = [Content(delta.text)] if delta.text else []
        else:
            pieces = parts.read(delta)
            self._conversation.count.reasoning_tokens = parts.reasoning_tokens
        if not any(isinstance(piece, Content) for piece in pieces):
            yield from self._items.add_logprobs(logprobs)
            logprobs = []
        for piece in pieces:
            yield from self._items.write(piece, logprobs)
            if isinstance(piece, Content):
                logprobs = []

    def _so_far(self, status: Status) -> Response:
        count = self._conversation.count
        usage = count.usage()
        return replace(
            self._opening,
            status=status,
            output=list(self._items.items("incomplete")),
            usage=ResponseUsage(
                usage.prompt_tokens,
                InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
                usage.completion_tokens,
                OutputTokensDetails(count.reasoning_tokens or 0),
                usage.total_tokens,
            ),
        )

    def _next(self) -> int:
        self._count += 1
        return self._count - 1


async def whole_response(events: AsyncIterator[Event]) -> Response:
    """What the last event says."""
    last: Event | None = None
    async for event in events:
        last = event
    assert isinstance(last, ResponseEvent), "a stream ends with the response"
    return last.response


def answer_message(output: list[Item]) -> dict[str, Any]:
    """What the model said, as a message to go on from."""
    said: dict[str, Any] = {"role": "assistant", "content": ""}
    for item in output:
        match item:
            case OutputMessage():
                said["content"] += item.content[0].text
            case ReasoningItem():
                said["reasoning_content"] = item.content[0].text
            case FunctionCallItem():
                call = call_of("output", item.name, item.arguments, item.call_id)
                said.setdefault("tool_calls", []).append(call)
    return said
