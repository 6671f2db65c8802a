"""Pieces of an answer as a chat's deltas, and a chat's deltas as one whole message.

A call begins with a delta that has its id and name; its arguments follow piece by piece. It knows the wire's shapes of
messages; it knows nothing of chunks.
"""

from __future__ import annotations

import secrets

from msgspec import UNSET

from puna.models.calls.pieces import CallArguments, CallStart, Content, Piece, Reasoning
from puna.server.answers import ChatDelta, ChatMessage, FunctionCall, FunctionDelta, ToolCall, ToolCallDelta


def new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def chat_deltas(pieces: list[Piece], *, old_functions: bool = False) -> list[ChatDelta]:
    """`old_functions`: a call as `function_call`, which has no id."""
    deltas = []
    for piece in pieces:
        match piece:
            case Content():
                deltas.append(ChatDelta(content=piece.text))
            case Reasoning():
                deltas.append(ChatDelta(reasoning_content=piece.text, reasoning=piece.text))
            case CallStart() if old_functions:
                deltas.append(ChatDelta(function_call=FunctionDelta(piece.name, "")))
            case CallArguments() if old_functions:
                deltas.append(ChatDelta(function_call=FunctionDelta(arguments=piece.text)))
            case CallStart():
                function = FunctionDelta(piece.name, "")
                call = ToolCallDelta(index=piece.index, id=new_call_id(), type="function", function=function)
                deltas.append(ChatDelta(tool_calls=[call]))
            case CallArguments():
                call = ToolCallDelta(index=piece.index, function=FunctionDelta(arguments=piece.text))
                deltas.append(ChatDelta(tool_calls=[call]))
    return deltas


class WholeMessage:
    """What the deltas of one choice add up to."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[str, str, list[str]]] = []  # id, name, arguments
        self._function: tuple[str, list[str]] | None = None

    def add(self, delta: ChatDelta) -> None:
        if delta.content:
            self._content.append(delta.content)
        if delta.reasoning_content:
            self._reasoning.append(delta.reasoning_content)
        for call in delta.tool_calls or ():
            if call.id is not None:
                self._calls.append((call.id, call.function.name or "", []))
            self._calls[call.index][2].append(call.function.arguments or "")
        if delta.function_call is not None:
            if self._function is None:
                self._function = (delta.function_call.name or "", [])
            self._function[1].append(delta.function_call.arguments or "")

    def whole(self) -> ChatMessage:
        content, reasoning = "".join(self._content), "".join(self._reasoning)
        calls = [ToolCall(name, FunctionCall(called, "".join(given))) for name, called, given in self._calls]
        return ChatMessage(
            None if not content and (calls or self._function) else content,
            reasoning_content=reasoning or UNSET,
            reasoning=reasoning or UNSET,
            tool_calls=calls or UNSET,
            function_call=FunctionCall(self._function[0], "".join(self._function[1])) if self._function else UNSET,
        )
