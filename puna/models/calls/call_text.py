"""One call while its text arrives: `{"name": ..., "arguments": {...}}`, or the arguments alone behind a known name.

A call whose name is in `bound` is held to JSON by a grammar, and its arguments are given out as they come. Any other is
kept until it is whole: what breaks off or names no tool was none. It knows JSON; it knows no marks around calls.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from puna.models.calls.json_scan import JsonScan
from puna.models.calls.pieces import CallArguments, CallStart, Piece

ARGUMENT_KEYS = ("arguments", "parameters")


class CallText:
    """Begins at place `at` of its text, maybe behind white space; `name` is given where the text has only arguments.
    `has_begun`: pieces of it are out, so that it is a call whatever comes."""

    def __init__(
        self, at: int, index: int, names: Collection[str], bound: Collection[str], name: str | None = None
    ) -> None:
        self.scan = JsonScan(at)
        self.has_begun = False
        self._index = index
        self._names = names
        self._bound = bound
        self._name = name
        self._at = at
        self._given = at  # up to here the arguments are out

    def take(self, text: str) -> list[Piece]:
        """Goes on in `text`, all of it since place 0. The pieces that can be given out already."""
        self.scan.take(text)
        if not self._bound or (place := self._arguments(text)) is None:
            return []
        name, start, end = place
        pieces: list[Piece] = []
        if not self.has_begun:
            self.has_begun = True
            self._given = start
            pieces.append(CallStart(self._index, name))
        if end > self._given:
            pieces.append(CallArguments(self._index, text[self._given : end]))
            self._given = end
        return pieces

    def rest(self, text: str) -> list[Piece] | None:
        """Once it is whole: what is not out yet. None: it is no call of a known tool."""
        if self.has_begun:
            return []
        raw = text[self._start(text) : self.scan.at]
        try:
            found = self._read(raw, text)
        except (ValueError, RecursionError):
            return None
        if found is None or found[0] not in self._names:
            return None
        return [CallStart(self._index, found[0]), CallArguments(self._index, found[1])]

    def _start(self, text: str) -> int:
        """Behind white space."""
        return self.scan.at - len(text[self._at : self.scan.at].lstrip())

    def _arguments(self, text: str) -> tuple[str, int, int] | None:
        """The name of a bound call and where its arguments lie, as far as they are there."""
        if self._name is not None:
            start = self._start(text)
            is_open = start < self.scan.at and text[start] == "{" and self._name in self._bound
            return (self._name, start, self.scan.at) if is_open else None
        name = next((m for m in self.scan.members if m.key == "name" and m.end is not None), None)
        arguments = next((m for m in self.scan.members if m.key in ARGUMENT_KEYS and text[m.start] == "{"), None)
        if name is None or arguments is None:
            return None
        spelled = json.loads(text[name.start : name.end], strict=False)
        if not isinstance(spelled, str) or spelled not in self._bound:
            return None
        return spelled, arguments.start, self.scan.at if arguments.end is None else arguments.end

    def _read(self, raw: str, text: str) -> tuple[str, str] | None:
        """Name and arguments; also of a call in OpenAI's shape, or with arguments that are JSON inside a string."""
        value, spelled = _loaded(raw)
        if self._name is not None:
            return (self._name, spelled) if isinstance(value, dict) else None
        if isinstance(value, dict) and isinstance(value.get("function"), dict):
            value, spelled = value["function"], ""
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(name, str):
            return None
        key = next((key for key in ARGUMENT_KEYS if value.get(key) is not None), None)
        if key is None:
            return name, "{}"
        arguments = value[key]
        if isinstance(arguments, str):
            arguments, written = _loaded(arguments)
            return (name, written) if isinstance(arguments, dict) else None
        if not isinstance(arguments, dict):
            return None
        member = next((m for m in reversed(self.scan.members) if m.key == key), None)
        if member is None or spelled != raw:
            return name, json.dumps(arguments, ensure_ascii=False)
        return name, text[member.start : member.end]


def _loaded(raw: str) -> tuple[Any, str]:
    """The value, and its JSON text: as it stands, or written anew where a string has raw line ends."""
    try:
        return json.loads(raw), raw
    except ValueError:
        value = json.loads(raw, strict=False)
        return value, json.dumps(value, ensure_ascii=False)
