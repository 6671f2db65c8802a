"""What readers of all formats share: text that is not decided yet, content, and the white space around calls.

White space before and behind a call belongs to neither; anywhere else it is content as it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection

from puna.models.calls.pieces import CallArguments, CallStart, Content, Piece


class CallReader(ABC):
    """Reads one answer. `names`: the tools there are. `bound`: those whose calls a grammar holds to their form."""

    def __init__(self, names: Collection[str], bound: Collection[str] = ()) -> None:
        self.names = frozenset(names)
        self.bound = frozenset(bound)
        self.calls = 0
        self.text = ""  # not decided yet
        self.state: Callable[[bool], bool] = self.begin
        self._out: list[Piece] = []
        self._space = ""  # at the end of what was content so far
        self._drops_space = False

    def feed(self, text: str) -> list[Piece]:
        return self._read(text, is_end=False)

    def end(self) -> list[Piece]:
        pieces = self._read("", is_end=True)
        if self._space:
            pieces.append(Content(self._space))
            self._space = ""
        return pieces

    @abstractmethod
    def begin(self, is_end: bool) -> bool:
        """The first state. A state decides about some of `text` and says whether to go on at once; where it cannot
        decide it waits for more, unless this is the end."""

    def say(self, text: str) -> None:
        """Content. White space at its end is kept until it is known what follows."""
        if self._drops_space:
            text = text.lstrip()
        if not text:
            return
        self._drops_space = False
        text = self._space + text
        kept = text.rstrip()
        self._space = text[len(kept) :]
        if kept:
            self._out.append(Content(kept))

    def call(self, pieces: list[Piece]) -> None:
        """Pieces of a call."""
        for piece in pieces:
            if isinstance(piece, CallStart):
                self.calls += 1
                self._space = ""
                self._drops_space = True
            if not isinstance(piece, CallArguments) or piece.text:
                self._out.append(piece)

    def rest_is_content(self, is_end: bool) -> bool:  # noqa: ARG002
        """The state for an answer in which no call can come any more."""
        text, self.text = self.text, ""
        self.say(text)
        return False

    def _read(self, text: str, *, is_end: bool) -> list[Piece]:
        pieces: list[Piece] = []
        self._out = pieces
        self.text += text
        while self.state(is_end):
            pass
        if is_end and self.text:
            self.rest_is_content(is_end)
        return pieces


def partial_length(text: str, marks: Collection[str]) -> int:
    """How many characters at the end of `text` may be the beginning of one of `marks`."""
    longest = max((len(mark) for mark in marks), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-length:]) for mark in marks):
            return length
    return 0
