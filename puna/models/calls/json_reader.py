"""Reads calls that are JSON objects, in the marks of a format: Hermes and Qwen, Llama 3, Mistral, and none at all.

One object, several behind each other, or a list of them. Each stands on its own: if one is no call, it and what has no
mark of its own behind it are content.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from puna.models.calls.call_text import CallText
from puna.models.calls.reader import CallReader, partial_length

_FENCES = ("```json", "```")
_NAME = re.compile(r"\s*([A-Za-z0-9_.\-]{1,128})")
_HEAD = re.compile(r"\s*([A-Za-z0-9_.\-]{1,128})\s*(?:\[CALL_ID\][A-Za-z0-9_\-]{0,64})?\[ARGS\]")


@dataclass(frozen=True)
class Marks:
    """`opens` begin calls: wherever they stand if `anywhere`, else at the beginning of the answer. `closes` may stand
    behind them. `bare`: an answer that begins with JSON, maybe in a fence, is calls without a mark. `heads`: behind the
    mark there may be `name[ARGS]` and the arguments alone."""

    opens: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()
    anywhere: bool = False
    bare: bool = False
    heads: bool = False


HERMES = Marks(("<tool_call>",), ("</tool_call>",), anywhere=True, bare=True)  # small ones forget the marks
LLAMA = Marks(("<|python_tag|>",), bare=True)
MISTRAL = Marks(("[TOOL_CALLS]",), anywhere=True, heads=True)
PLAIN = Marks(("```json", "```"), ("```",), bare=True)


class JsonCallReader(CallReader):
    """`text` begins where the mark does, or behind the last call, until it is known what stands there."""

    def __init__(self, marks: Marks, names: Collection[str], bound: Collection[str] = ()) -> None:
        self._marks = marks
        self._in_list = False
        self._opened = 0  # characters of the mark that `text` begins with
        self._closes = marks.closes
        self._is_bare = False
        super().__init__(names, bound)

    def begin(self, is_end: bool) -> bool:
        if self._marks.anywhere and not self._marks.bare:
            self.state = self._search
            return True
        opens = (*self._marks.opens, *(_FENCES if self._marks.anywhere else ()))
        text = self.text.lstrip()
        if not text:
            return False
        mark = next((mark for mark in opens if text.startswith(mark)), "")
        if not is_end and any(len(text) < len(mark) and mark.startswith(text) for mark in opens):
            return False
        if not mark and not (self._marks.bare and text[0] in "{["):
            self.state = self._search if self._marks.anywhere else self.rest_is_content
            return True
        self._is_bare = mark not in self._marks.opens
        if mark in _FENCES:
            self._closes = (*self._closes, _FENCES[-1])
        self._opened = len(self.text) - len(text) + len(mark)
        self.state = self._open
        return True

    def _search(self, is_end: bool) -> bool:
        found = [(at, mark) for mark in self._marks.opens if (at := self.text.find(mark)) >= 0]
        if not found:
            kept = 0 if is_end else partial_length(self.text, self._marks.opens)
            self._say_first(len(self.text) - kept)
            return False
        at, mark = min(found)
        self._say_first(at)
        self._opened = len(mark)
        self.state = self._open
        return True

    def _open(self, is_end: bool) -> bool:
        """Behind a mark."""
        inside = self.text[self._opened :].lstrip()
        if not inside:
            return self._fail() if is_end else False
        at = len(self.text) - len(inside)
        if inside[0] == "[":
            self._in_list = True
            return self._object(at + 1)
        if self._marks.heads and _NAME.match(inside):
            self.state = self._head
            return True
        return self._object(at)

    def _head(self, is_end: bool) -> bool:
        found = _HEAD.match(self.text, self._opened)
        if found is None:
            is_over = is_end or not _may_be_head(self.text[self._opened :])
            return self._fail() if is_over else False
        return self._object(found.end(), found[1])

    def _object(self, at: int, name: str | None = None) -> bool:
        bound = () if self._is_bare and self._marks.anywhere else self.bound  # a grammar holds what has its mark
        self._call = CallText(at, self.calls, self.names, bound, name)
        self.state = self._inside
        return True

    def _inside(self, is_end: bool) -> bool:
        self.call(self._call.take(self.text))
        scan = self._call.scan
        if scan.is_bad or (is_end and not scan.is_done):
            return self._fail()
        if not scan.is_done:
            return False
        pieces = self._call.rest(self.text)
        if pieces is None:
            return self._fail()
        self.call(pieces)
        self.text = self.text[scan.at :]
        self._opened = 0
        self.state = self._behind
        return True

    def _behind(self, is_end: bool) -> bool:
        """Behind a call."""
        text = self.text.lstrip()
        if not text:
            return False
        at = len(self.text) - len(text)
        if self._in_list:
            return self._behind_in_list(text[0], at)
        for mark in self._closes:
            if text.startswith(mark):
                self.text = text[len(mark) :]
                return self._closed()
            if not is_end and mark.startswith(text):
                return False
        if (self._is_bare or not self._marks.anywhere) and text[0] in ";{":
            if text[0] == "{":
                return self._object(at)
            if len(text) > 1 and not text[1:].isspace():
                return self._object(at + 1)
            return self._fail() if is_end else False
        return self._closed()

    def _behind_in_list(self, char: str, at: int) -> bool:
        if char == ",":
            return self._object(at + 1)
        if char != "]":
            return self._fail()
        self.text = self.text[at + 1 :]
        self._in_list = False
        return True

    def _closed(self) -> bool:
        self._closes, self._is_bare = self._marks.closes, False
        self.state = self._search if self._marks.anywhere else self._again
        return True

    def _again(self, is_end: bool) -> bool:
        """Behind calls at the beginning of an answer: their mark may come again."""
        text = self.text.lstrip()
        if not is_end and any(mark.startswith(text) for mark in self._marks.opens if len(text) < len(mark)):
            return False
        mark = next((mark for mark in self._marks.opens if text.startswith(mark)), None)
        if mark is None:
            self.state = self.rest_is_content
            return True
        self._opened = len(self.text) - len(text) + len(mark)
        self.state = self._open
        return True

    def _fail(self) -> bool:
        """What `text` begins with is no call. Where marks may stand anywhere there may be another one behind it."""
        if self.state == self._inside and self._call.has_begun:
            self.text, self._opened = self.text[self._call.scan.at :], 0
        self._in_list = False
        if self._marks.anywhere:
            self._say_first(self._opened)
            self._opened = 0
            self.state = self._search
        else:
            self.state = self.rest_is_content
        return True

    def _say_first(self, length: int) -> None:
        said, self.text = self.text[:length], self.text[length:]
        self.say(said)


def _may_be_head(text: str) -> bool:
    """Whether `text` can still become a name and `[ARGS]`."""
    found = _NAME.match(text)
    if found is None:
        return False
    rest = text[found.end() :].lstrip()
    if not rest or any(mark.startswith(rest) for mark in ("[ARGS]", "[CALL_ID]")):
        return True
    called = re.match(r"\[CALL_ID\][A-Za-z0-9_\-]{0,64}", rest)
    return called is not None and "[ARGS]".startswith(rest[called.end() :])
