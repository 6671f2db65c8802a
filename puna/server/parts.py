"""An answer taken apart on its way: reasoning, content and calls, choice by choice.

It lives where the text is, in the process that speaks HTTP: an engine that dies takes nothing of it along. It knows
deltas and readers; it knows none of the shapes that clients see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from puna.models.calls.pieces import CallArguments, CallStart, Piece, PieceReader
from puna.models.calls.reasoning import ReasoningTokens
from puna.server.deltas import Delta

CALLED = "tool_calls"  # the finish reason of a choice that ended with calls


@dataclass
class _Choice:
    reader: PieceReader
    tokens: ReasoningTokens | None
    calls: int = 0


class AnswerParts:
    """Of all choices. `parallel`: further calls of one answer are given out, else left out. `is_named`: the client
    chose the tool, so that its call is no news. `shown_tokens`: special tokens that the readers have to see."""

    def __init__(
        self,
        make_reader: Callable[[], PieceReader],
        make_tokens: Callable[[], ReasoningTokens] | None,
        *,
        parallel: bool = True,
        is_named: bool = False,
        shown_tokens: frozenset[int] = frozenset(),
    ) -> None:
        self.shown_tokens = shown_tokens
        self._make_reader = make_reader
        self._make_tokens = make_tokens
        self._parallel = parallel
        self._is_named = is_named
        self._choices: dict[int, _Choice] = {}

    @property
    def reasoning_tokens(self) -> int | None:
        """So far; None where the model does not reason in marks."""
        if self._make_tokens is None:
            return None
        return sum(choice.tokens.count for choice in self._choices.values() if choice.tokens is not None)

    def read(self, delta: Delta) -> list[Piece]:
        choice = self._choices.get(delta.index)
        if choice is None:
            tokens = None if self._make_tokens is None else self._make_tokens()
            choice = self._choices[delta.index] = _Choice(self._make_reader(), tokens)
        if choice.tokens is not None:
            choice.tokens.add(delta.token_ids)
        pieces = choice.reader.feed(delta.text) if delta.text else []
        if delta.finish_reason is not None:
            pieces = pieces + choice.reader.end()
        if not self._parallel:
            pieces = [p for p in pieces if not isinstance(p, CallStart | CallArguments) or p.index == 0]
        choice.calls += sum(isinstance(piece, CallStart) for piece in pieces)
        return pieces

    def finish_reason(self, delta: Delta) -> str | None:
        """As OpenAI has it: an answer that ended with calls says so, unless the client named the tool."""
        if delta.finish_reason == "stop" and self._choices[delta.index].calls and not self._is_named:
            return CALLED
        return delta.finish_reason
