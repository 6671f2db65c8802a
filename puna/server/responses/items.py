"""Pieces of an answer as the output items of a response: reasoning, text, calls, each with its events.

One item is open at a time; another kind of piece, or another call, closes it. It knows items and their events; it knows
nothing of the response around them.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from puna.models.calls.pieces import CallArguments, CallStart, Content, Piece, Reasoning
from puna.server.answers import ChatLogprob
from puna.server.chat_pieces import new_call_id
from puna.server.responses.shapes import (
    ArgumentsDeltaEvent,
    ArgumentsDoneEvent,
    DeltaEvent,
    Event,
    FunctionCallItem,
    Item,
    ItemEvent,
    ItemStatus,
    OutputMessage,
    OutputText,
    PartEvent,
    ReasoningDeltaEvent,
    ReasoningDoneEvent,
    ReasoningItem,
    ReasoningText,
    TextDoneEvent,
)

Kind = Literal["message", "reasoning", "call"]


@dataclass
class _Open:
    kind: Kind
    id: str
    text: list[str] = field(default_factory=list)
    logprobs: list[ChatLogprob] = field(default_factory=list)
    call_id: str = ""
    name: str = ""

    def item(self, status: ItemStatus) -> Item:
        text = "".join(self.text)
        match self.kind:
            case "message":
                return OutputMessage(
                    id=self.id, status=status, content=[OutputText(text=text, logprobs=list(self.logprobs))]
                )
            case "reasoning":
                return ReasoningItem(id=self.id, status=status, content=[ReasoningText(text=text)])
        return FunctionCallItem(id=self.id, status=status, call_id=self.call_id, name=self.name, arguments=text)


class ItemWriter:
    """Of one response. `number` gives each event its number."""

    def __init__(self, number: Callable[[], int]) -> None:
        self._number = number
        self._done: list[Item] = []
        self._open: _Open | None = None

    def items(self, status: ItemStatus) -> list[Item]:
        """All so far, the open one with `status`."""
        return self._done if self._open is None else [*self._done, self._open.item(status)]

    def write(self, piece: Piece, logprobs: list[ChatLogprob]) -> Iterator[Event]:
        match piece:
            case Content():
                if self._open is None or self._open.kind != "message":
                    yield from self.open_message()
                yield self._text(piece.text, logprobs)
            case Reasoning():
                if self._open is None or self._open.kind != "reasoning":
                    yield from self._begin(_Open("reasoning", f"rs_{secrets.token_hex(12)}"))
                opened = self._opened(piece.text)
                yield ReasoningDeltaEvent(
                    sequence_number=self._number(), item_id=opened.id, delta=piece.text, output_index=self._at
                )
            case CallStart():
                call = _Open("call", f"fc_{secrets.token_hex(12)}", call_id=new_call_id(), name=piece.name)
                yield from self._begin(call)
            case CallArguments():
                opened = self._opened(piece.text)
                yield ArgumentsDeltaEvent(
                    sequence_number=self._number(), item_id=opened.id, delta=piece.text, output_index=self._at
                )

    def open_message(self) -> Iterator[Event]:
        yield from self._begin(_Open("message", f"msg_{secrets.token_hex(12)}"))

    def add_logprobs(self, logprobs: list[ChatLogprob]) -> Iterator[Event]:
        """Of tokens that gave no text yet."""
        if self._open is not None and self._open.kind == "message" and logprobs:
            yield self._text("", logprobs)

    def end(self, status: ItemStatus) -> Iterator[Event]:
        """A response has at least one item. The last one ends as the response does."""
        if not self._done and self._open is None:
            yield from self.open_message()
        yield from self._close(status)

    @property
    def _at(self) -> int:
        return len(self._done)

    def _opened(self, text: str) -> _Open:
        assert self._open is not None, "a piece of an item comes behind its beginning"
        self._open.text.append(text)
        return self._open

    def _text(self, text: str, logprobs: list[ChatLogprob]) -> Event:
        opened = self._opened(text)
        opened.logprobs += logprobs
        return DeltaEvent(
            sequence_number=self._number(), item_id=opened.id, delta=text, logprobs=logprobs, output_index=self._at
        )

    def _begin(self, opened: _Open) -> Iterator[Event]:
        yield from self._close("completed")
        self._open = opened
        item = opened.item("in_progress")
        if isinstance(item, OutputMessage | ReasoningItem):
            item = type(item)(id=item.id, status="in_progress", content=[])
        yield ItemEvent("response.output_item.added", self._number(), item, self._at)
        if opened.kind == "message":
            part = OutputText(text="")
            yield PartEvent("response.content_part.added", self._number(), opened.id, part, self._at)

    def _close(self, status: ItemStatus) -> Iterator[Event]:
        opened = self._open
        if opened is None:
            return
        item, at, text = opened.item(status), self._at, "".join(opened.text)
        match item:
            case OutputMessage():
                (part,) = item.content
                yield TextDoneEvent(
                    sequence_number=self._number(),
                    item_id=item.id,
                    text=text,
                    logprobs=part.logprobs,
                    output_index=at,
                )
                yield PartEvent("response.content_part.done", self._number(), item.id, part, at)
            case ReasoningItem():
                yield ReasoningDoneEvent(sequence_number=self._number(), item_id=item.id, text=text, output_index=at)
            case FunctionCallItem():
                yield ArgumentsDoneEvent(
                    sequence_number=self._number(), item_id=item.id, name=item.name, arguments=text, output_index=at
                )
        yield ItemEvent("response.output_item.done", self._number(), item, at)
        self._done.append(item)
        self._open = None
