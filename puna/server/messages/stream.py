"""Deltas of an answer become the events of Anthropic's stream, and the events one whole message.

It knows their order and the reasons why an answer stops; it knows nothing of HTTP or the engine.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from msgspec import UNSET
from msgspec.structs import replace

from puna.models.calls.pieces import Content, Piece
from puna.server.conversation import Conversation
from puna.server.deltas import DEADLINE, Delta, UsageCount, known_seed
from puna.server.messages.block_writer import BlockWriter, text_of, whole_block
from puna.server.messages.shapes import (
    Block,
    ContentBlockDelta,
    ContentBlockStart,
    Event,
    Message,
    MessageDelta,
    MessageStart,
    MessageStop,
    MessageUsage,
    StopDelta,
    TextBlock,
)


async def message_events(talk: Conversation, max_tokens: int) -> AsyncGenerator[Event]:
    """`max_tokens`: as the client has it; the context may have room for fewer."""
    last: Delta | None = None
    blocks = BlockWriter()
    async with aclosing(talk.deltas) as deltas:
        async for delta in deltas:
            talk.count.add(delta)
            if last is None:
                yield MessageStart(message=_opening(talk, delta))
                if talk.parts is None:
                    for event in blocks.open(TextBlock(text="")):
                        yield event
            last = delta
            pieces: list[Piece] = [Content(delta.text)] if delta.text else []
            for piece in pieces if talk.parts is None else talk.parts.read(delta):
                for event in blocks.write(piece):
                    yield event
    assert last is not None, "an answer has at least a finish"
    for event in blocks.end():
        yield event
    stop_text = _stop_text(last)
    reason = "stop_sequence" if stop_text else _stop_reason(last, talk, max_tokens, has_calls=blocks.has_calls)
    yield MessageDelta(delta=StopDelta(reason, stop_text), usage=_usage(talk.count))
    yield MessageStop()


async def whole_message(events: AsyncIterator[Event]) -> Message:
    """The body that says what the stream would have said."""
    message: Message | None = None
    blocks: list[tuple[Block, list[str]]] = []
    async for event in events:
        match event:
            case MessageStart():
                message = event.message
            case ContentBlockStart():
                blocks.append((event.content_block, []))
            case ContentBlockDelta():
                blocks[-1][1].append(text_of(event.delta))
            case MessageDelta():
                assert message is not None
                stop = event.delta
                message = replace(
                    message, stop_reason=stop.stop_reason, stop_sequence=stop.stop_sequence, usage=event.usage
                )
    assert message is not None, "a stream begins with the message"
    return replace(message, content=[whole_block(block, "".join(text)) for block, text in blocks])


def _opening(talk: Conversation, first: Delta) -> Message:
    return Message(
        id=talk.heading.id,
        model=talk.heading.model,
        content=[],
        stop_reason=None,
        stop_sequence=None,
        usage=replace(_usage(talk.count), output_tokens=0),
        system_fingerprint=talk.heading.fingerprint,
        seed=known_seed(first),
        truncated_tokens=talk.prompt.truncated_tokens or UNSET,
    )


def _usage(count: UsageCount) -> MessageUsage:
    usage = count.usage()
    cached = usage.prompt_tokens_details.cached_tokens
    return MessageUsage(
        input_tokens=usage.prompt_tokens - cached,
        cache_read_input_tokens=cached,
        output_tokens=usage.completion_tokens,
    )


def _stop_text(last: Delta) -> str | None:
    """The stop sequence that ended the answer, if one did."""
    return last.stop_reason if last.finish_reason == "stop" and isinstance(last.stop_reason, str) else None


def _stop_reason(last: Delta, talk: Conversation, max_tokens: int, *, has_calls: bool) -> str:
    if last.finish_reason == "stop":
        return "tool_use" if has_calls else "end_turn"
    if last.stop_reason == DEADLINE or talk.params.max_tokens == max_tokens:
        return "max_tokens"
    return "model_context_window_exceeded"
