"""Pieces of an answer as the events of Anthropic's content blocks, and the events of one block as the whole of it.

One block is open at a time; another kind of piece, or another call, closes it. It knows blocks; it knows nothing of the
message around them.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator

from msgspec.structs import replace

from puna.models.calls.pieces import CallArguments, CallStart, Content, Piece, Reasoning
from puna.server.messages.shapes import (
    Block,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    Event,
    InputDelta,
    SignatureDelta,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
)

BROKEN = "INVALID_JSON"  # names the text of arguments that are no JSON, as Anthropic advises


class BlockWriter:
    """Of one message. `has_calls`: a tool is used in it."""

    def __init__(self) -> None:
        self.has_calls = False
        self._index = -1
        self._open: Block | None = None

    def write(self, piece: Piece) -> Iterator[Event]:
        match piece:
            case Content():
                if not isinstance(self._open, TextBlock):
                    yield from self.open(TextBlock(text=""))
                yield self._delta(TextDelta(text=piece.text))
            case Reasoning():
                if not isinstance(self._open, ThinkingBlock):
                    yield from self.open(ThinkingBlock(thinking=""))
                yield self._delta(ThinkingDelta(thinking=piece.text))
            case CallStart():
                self.has_calls = True
                yield from self.open(ToolUseBlock(id=f"toolu_{secrets.token_hex(12)}", name=piece.name, input={}))
            case CallArguments():
                yield self._delta(InputDelta(partial_json=piece.text))

    def open(self, block: Block) -> Iterator[Event]:
        yield from self._close()
        self._index += 1
        self._open = block
        yield ContentBlockStart(index=self._index, content_block=block)

    def end(self) -> Iterator[Event]:
        """A message has at least one block."""
        if self._index < 0:
            yield from self.open(TextBlock(text=""))
        yield from self._close()

    def _close(self) -> Iterator[Event]:
        if self._open is None:
            return
        if isinstance(self._open, ThinkingBlock):
            yield self._delta(SignatureDelta())
        yield ContentBlockStop(index=self._index)
        self._open = None

    def _delta(self, delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta) -> ContentBlockDelta:
        return ContentBlockDelta(index=self._index, delta=delta)


def text_of(delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta) -> str:
    match delta:
        case TextDelta():
            return delta.text
        case ThinkingDelta():
            return delta.thinking
        case InputDelta():
            return delta.partial_json
    return ""


def whole_block(block: Block, text: str) -> Block:
    """The block that begins as `block`, with all its text."""
    match block:
        case TextBlock():
            return replace(block, text=text)
        case ThinkingBlock():
            return replace(block, thinking=text)
    try:
        arguments = json.loads(text or "{}")
    except ValueError:  # the answer was cut in the middle of it
        arguments = {BROKEN: text}
    return replace(block, input=arguments)
