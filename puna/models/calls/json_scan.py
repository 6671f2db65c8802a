"""Follows one JSON object or list while its text arrives: where it ends, where its outermost members lie.

It is strict but for raw line ends in strings, which small models write, and says at the first wrong character that
this is no JSON. It keeps no values; text that it was through is never looked at again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto

MAX_DEPTH = 128

_SPACE = re.compile(r"[ \t\n\r]*")
_STRING_REST = re.compile(r'[^"\\]*')
_WORD = re.compile(r"[-+.A-Za-z0-9]*")
_WHOLE_WORD = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null")
_ESCAPED = frozenset('"\\/bfnrtu')


class _Wants(Enum):
    VALUE = auto()
    FIRST_VALUE = auto()  # or the end of the list
    KEY = auto()
    FIRST_KEY = auto()  # or the end of the object
    COLON = auto()
    COMMA = auto()  # or the end of what is open
    STRING = auto()
    ESCAPE = auto()
    HEX = auto()
    WORD = auto()
    NOTHING = auto()


@dataclass(slots=True)
class Member:
    """Of the outermost object. Places are those of the text; `end` is behind the value, None while it is written."""

    key: str
    start: int
    end: int | None = None


class JsonScan:
    """`is_done`: the value is whole, and ends at `at`. `is_bad`: at `at` stands what no JSON has there."""

    def __init__(self, at: int = 0) -> None:
        self.at = at
        self.members: list[Member] = []
        self.is_bad = False
        self._wants = _Wants.VALUE
        self._open: list[str] = []
        self._began = at  # of the string or word that is read
        self._is_key = False
        self._hex_left = 0
        self._key = ""

    @property
    def is_done(self) -> bool:
        return self._wants is _Wants.NOTHING

    def take(self, text: str) -> None:
        """Goes on as far as `text` does: all of it since place 0, with what is new at its end."""
        while self.at < len(text) and not self.is_bad and not self.is_done:
            self._step(text)

    def _step(self, text: str) -> None:
        wants = self._wants
        if wants is _Wants.STRING:
            self._string(text)
        elif wants is _Wants.ESCAPE:
            self._escape(text[self.at])
        elif wants is _Wants.HEX:
            self._hex(text[self.at])
        elif wants is _Wants.WORD:
            self._word(text)
        else:
            found = _SPACE.match(text, self.at)
            assert found is not None, "it matches nothing, too"
            self.at = found.end()
            if self.at < len(text):
                self._sign(text[self.at])

    def _sign(self, char: str) -> None:
        """What stands between strings and words."""
        wants = self._wants
        closing = {"{": "}", "[": "]"}[self._open[-1]] if self._open else ""
        if wants in (_Wants.VALUE, _Wants.FIRST_VALUE) and char != "]":
            self._value(char)
        elif wants in (_Wants.KEY, _Wants.FIRST_KEY) and char == '"':
            self._is_key = True
            self._begin_string()
        elif wants is _Wants.COLON and char == ":":
            self.at += 1
            self._wants = _Wants.VALUE
        elif wants is _Wants.COMMA and char == ",":
            self.at += 1
            self._wants = _Wants.KEY if closing == "}" else _Wants.VALUE
        elif wants in (_Wants.COMMA, _Wants.FIRST_KEY, _Wants.FIRST_VALUE) and char == closing:
            self.at += 1
            self._open.pop()
            self._value_done()
        else:
            self.is_bad = True

    def _value(self, char: str) -> None:
        if self._open == ["{"]:
            self.members.append(Member(self._key, self.at))
        if char in "{[":
            self.at += 1
            self._open.append(char)
            self.is_bad = len(self._open) > MAX_DEPTH
            self._wants = _Wants.FIRST_KEY if char == "{" else _Wants.FIRST_VALUE
        elif not self._open:
            self.is_bad = True  # neither an object nor a list
        elif char == '"':
            self._is_key = False
            self._begin_string()
        else:
            self._began = self.at
            self._wants = _Wants.WORD

    def _begin_string(self) -> None:
        self.at += 1
        self._began = self.at
        self._wants = _Wants.STRING

    def _string(self, text: str) -> None:
        found = _STRING_REST.match(text, self.at)
        assert found is not None, "it matches nothing, too"
        self.at = found.end()
        if self.at == len(text):
            return
        self.at += 1
        if text[self.at - 1] == "\\":
            self._wants = _Wants.ESCAPE
        elif self._is_key:
            self._key = text[self._began : self.at - 1]
            self._wants = _Wants.COLON
        else:
            self._value_done()

    def _escape(self, char: str) -> None:
        self.is_bad = char not in _ESCAPED
        if not self.is_bad:
            self.at += 1
            self._hex_left = 4
            self._wants = _Wants.HEX if char == "u" else _Wants.STRING

    def _hex(self, char: str) -> None:
        self.is_bad = char not in "0123456789abcdefABCDEF"
        if not self.is_bad:
            self.at += 1
            self._hex_left -= 1
            self._wants = _Wants.HEX if self._hex_left else _Wants.STRING

    def _word(self, text: str) -> None:
        found = _WORD.match(text, self.at)
        assert found is not None, "it matches nothing, too"
        self.at = found.end()
        if self.at == len(text):
            return
        self.is_bad = not _WHOLE_WORD.fullmatch(text, self._began, self.at)
        if not self.is_bad:
            self._value_done()

    def _value_done(self) -> None:
        if len(self._open) == 1 and self._open[0] == "{":
            self.members[-1].end = self.at
        self._wants = _Wants.COMMA if self._open else _Wants.NOTHING
