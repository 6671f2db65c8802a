"""Splits a model's reasoning off its answer: what stands between `<think>` and `</think>` at its beginning.

A template may have opened the block in the prompt already. Line ends next to the marks belong to neither. It knows
text; how many tokens were reasoning is counted by `ReasoningTokens`, the same however they arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from puna.models.calls.pieces import Content, Piece, PieceReader, Reasoning
from puna.models.calls.reader import partial_length


@dataclass(frozen=True)
class ReasoningMarks:
    name: str
    opens: str
    closes: str

    def is_open(self, text: str) -> bool:
        """Whether a prompt ends inside a block that has just been opened."""
        return text.rstrip().endswith(self.opens)


KNOWN = (
    ReasoningMarks("think", "<think>", "</think>"),
    ReasoningMarks("mistral", "[THINK]", "[/THINK]"),
    ReasoningMarks("command", "<|START_THINKING|>", "<|END_THINKING|>"),
)


class ReasoningReader:
    """Reads one answer; what is no reasoning goes to `further`, if there is one."""

    def __init__(self, marks: ReasoningMarks, further: PieceReader | None = None, *, is_open: bool = False) -> None:
        self._marks = marks
        self._further = further
        self._text = ""
        self._state: Callable[[bool], list[Piece]] = self._inside if is_open else self._before
        self._begun = False  # some reasoning, or behind it some content, is out

    def feed(self, text: str) -> list[Piece]:
        if not self._text and self._state == self._behind and self._begun:
            return self._content(text)
        self._text += text
        return self._state(False)

    def end(self) -> list[Piece]:
        pieces = self._state(True)
        return pieces if self._further is None else pieces + self._further.end()

    def _before(self, is_end: bool) -> list[Piece]:
        text = self._text.lstrip()
        if text.startswith(self._marks.opens):
            self._text = text[len(self._marks.opens) :]
            self._state = self._inside
            return self._inside(is_end)
        if not is_end and self._marks.opens.startswith(text):
            return []
        self._state, self._begun = self._behind, True
        return self._behind(is_end)

    def _inside(self, is_end: bool) -> list[Piece]:
        if not self._begun:
            self._text = self._text.lstrip("\n")
        thought, mark, rest = self._text.partition(self._marks.closes)
        if mark:
            self._text, self._begun, self._state = rest, False, self._behind
            thought = thought.rstrip("\n")
            return [*([Reasoning(thought)] if thought else []), *self._behind(is_end)]
        kept = 0 if is_end else partial_length(thought, (self._marks.closes,))
        thought = thought[: len(thought) - kept]
        if not is_end:
            thought = thought.rstrip("\n")
        self._text = self._text[len(thought) :]
        self._begun = self._begun or bool(thought)
        return [Reasoning(thought)] if thought else []

    def _behind(self, is_end: bool) -> list[Piece]:  # noqa: ARG002
        text, self._text = self._text, ""
        if not self._begun:
            text = text.lstrip("\n")
            self._begun = bool(text)
        return self._content(text)

    def _content(self, text: str) -> list[Piece]:
        if not text:
            return []
        return [Content(text)] if self._further is None else self._further.feed(text)


class ReasoningTokens:
    """Counts the tokens of one answer's reasoning, marks included. `spell`: a token's text."""

    def __init__(self, marks: ReasoningMarks, spell: Callable[[int], str], *, is_open: bool = False) -> None:
        self.count = 0
        self._marks = marks
        self._spell = spell
        self._text = ""
        self._is_open = is_open
        self._waiting = 0  # tokens before it is known whether a block opens
        self._is_over = False

    def add(self, token_ids: Iterable[int]) -> None:
        if self._is_over:
            return
        for token in token_ids:
            self._text += self._spell(token)
            if not self._is_open:
                self._waiting += 1
                self._look()
            else:
                self.count += 1
            if self._is_open and self._marks.closes in self._text:
                self._is_over = True
            if self._is_over:
                return
            if self._is_open:
                self._text = self._text[-len(self._marks.closes) :]

    def _look(self) -> None:
        text = self._text.lstrip()
        if text.startswith(self._marks.opens):
            self._is_open = True
            self.count = self._waiting
        elif not self._marks.opens.startswith(text):
            self._is_over = True
