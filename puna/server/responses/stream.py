"""Deltas of an answer become the typed events of a response, in OpenAI's order, and the last event is the whole answer.

Created, in progress; the item, its part, the text piece by piece; text, part and item done; completed or incomplete.
It knows that order; it knows nothing of HTTP, the engine or where responses are stored.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from puna.server.answers import ChatLogprob
from puna.server.conversation import Conversation
from puna.server.deltas import DEADLINE, Delta
from puna.server.errors import HttpFailure
from puna.server.logprobs import chat_logprobs
from puna.server.responses.shapes import (
    DeltaEvent,
    Event,
    IncompleteDetails,
    InputTokensDetails,
    ItemEvent,
    OutputMessage,
    OutputText,
    OutputTokensDetails,
    PartEvent,
    Response,
    ResponseError,
    ResponseEvent,
    ResponseUsage,
    Status,
    TextDoneEvent,
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
        item_id: str,
        tokenizer: Tokenizer,
        done: Callable[[Response], Awaitable[Response]],
    ) -> None:
        self._conversation = conversation
        self._opening = opening
        self._item_id = item_id
        self._tokenizer = tokenizer
        self._done = done
        self._count = 0
        self._text: list[str] = []
        self._logprobs: list[ChatLogprob] = []

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
                logprobs = chat_logprobs(self._tokenizer, last.logprobs).content if last.logprobs else []
                self._text.append(last.text)
                self._logprobs += logprobs
                if last.text or logprobs:
                    yield DeltaEvent(
                        sequence_number=self._next(), item_id=self._item_id, delta=last.text, logprobs=logprobs
                    )
        assert last is not None, "an answer has at least a finish"
        reason = None
        if last.finish_reason == "length":
            reason = DEADLINE if last.stop_reason == DEADLINE else "max_output_tokens"
        whole = replace(self._so_far("incomplete" if reason else "completed"), seed=seed, completed_at=int(time.time()))
        if reason:
            whole = replace(whole, incomplete_details=IncompleteDetails(reason))
        (item,) = whole.output
        (part,) = item.content
        yield TextDoneEvent(sequence_number=self._next(), item_id=self._item_id, text=part.text, logprobs=part.logprobs)
        yield PartEvent("response.content_part.done", self._next(), self._item_id, part)
        yield ItemEvent("response.output_item.done", self._next(), item)
        whole = await self._done(whole)
        yield ResponseEvent(f"response.{whole.status}", self._next(), whole)

    def failed(self, failure: HttpFailure) -> ResponseEvent:
        """The last event of a stream that breaks in the middle."""
        code = "rate_limit_exceeded" if failure.status == 429 else "server_error"
        broken = replace(self._so_far("failed"), error=ResponseError(code, failure.message))
        return ResponseEvent("response.failed", self._next(), broken)

    def _begin(self) -> list[Event]:
        empty = OutputText(text="")
        item = OutputMessage(id=self._item_id, status="in_progress", content=[])
        return [
            ResponseEvent("response.created", self._next(), self._opening),
            ResponseEvent("response.in_progress", self._next(), self._opening),
            ItemEvent("response.output_item.added", self._next(), item),
            PartEvent("response.content_part.added", self._next(), self._item_id, empty),
        ]

    def _so_far(self, status: Status) -> Response:
        usage = self._conversation.count.usage()
        part = OutputText(text="".join(self._text), logprobs=self._logprobs)
        item = OutputMessage(
            id=self._item_id, status="completed" if status == "completed" else "incomplete", content=[part]
        )
        return replace(
            self._opening,
            status=status,
            output=[item],
            usage=ResponseUsage(
                usage.prompt_tokens,
                InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
                usage.completion_tokens,
                OutputTokensDetails(),
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
