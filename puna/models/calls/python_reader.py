"""Reads calls that are a list in Python's spelling, as Llama 3.2 and 4 write them: `[f(a=1), g(b=["x"])]`.

The list is the beginning of the answer and is kept until it is whole; arguments become JSON. Nothing is evaluated: what
is no literal is no call.
"""

from __future__ import annotations

import ast
import json
import warnings
from typing import Any

from puna.models.calls.pieces import CallArguments, CallStart, Piece
from puna.models.calls.reader import CallReader

OPEN, CLOSE = "<|python_start|>", "<|python_end|>"
MAX_CHARS = 1 << 17
MAX_DEPTH = 48
_JSON_NAMES = {"true": True, "false": False, "null": None}


class PythonCallReader(CallReader):
    """`text` is all of the answer until the list has ended."""

    def begin(self, is_end: bool) -> bool:
        text = self.text.lstrip()
        if not text or (not is_end and len(text) < len(OPEN) and OPEN.startswith(text)):
            return False
        at = len(self.text) - len(text) + (len(OPEN) if text.startswith(OPEN) else 0)
        inside = self.text[at:].lstrip()
        if not inside and not is_end:
            return False
        if not inside.startswith("["):
            self.state = self.rest_is_content
            return True
        self._start = self._at = len(self.text) - len(inside)
        self._open: list[str] = []
        self._quote = self._quote_before = ""
        self.state = self._inside
        return True

    def _inside(self, is_end: bool) -> bool:
        while self._at < len(self.text):
            if not self._step(self.text[self._at]) or self._at - self._start > MAX_CHARS:
                return self._fail()
            self._at += 1
            if not self._open:
                return self._whole()
        return self._fail() if is_end else False

    def _step(self, char: str) -> bool:
        """Whether brackets still match."""
        if self._quote:
            if self._quote == "\\":
                self._quote = self._quote_before
            elif char == "\\":
                self._quote_before, self._quote = self._quote, "\\"
            elif char == self._quote:
                self._quote = ""
        elif char in "'\"":
            self._quote = char
        elif char in "([{":
            self._open.append({"(": ")", "[": "]", "{": "}"}[char])
            return len(self._open) <= MAX_DEPTH
        elif char in ")]}":
            return self._open.pop() == char
        return True

    def _whole(self) -> bool:
        calls = read_calls(self.text[self._start : self._at])
        if not calls or any(name not in self.names for name, _ in calls):
            return self._fail()
        for name, arguments in calls:
            pieces: list[Piece] = [CallStart(self.calls, name), CallArguments(self.calls, arguments)]
            self.call(pieces)
        self.text = self.text[self._at :]
        self.state = self._behind
        return True

    def _behind(self, is_end: bool) -> bool:
        text = self.text.lstrip()
        if not is_end and len(text) < len(CLOSE) and CLOSE.startswith(text):
            return False
        self.text = text.removeprefix(CLOSE)
        self.state = self.rest_is_content
        return True

    def _fail(self) -> bool:
        self.state = self.rest_is_content
        return True


def read_calls(text: str) -> list[tuple[str, str]]:
    """Names and arguments, as JSON, of the calls in a list. Empty where it is no list of calls with literals."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes that Python does not know
            tree = ast.parse(text, mode="eval").body
        if not isinstance(tree, ast.List):
            return []
        return [_call(node) for node in tree.elts]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return []


def _call(node: ast.expr) -> tuple[str, str]:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call with named arguments")
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise ValueError("not a name, or given twice")
        arguments[keyword.arg] = _literal(keyword.value)
    return _name(node.func), json.dumps(arguments, ensure_ascii=False, allow_nan=False)


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    if isinstance(node, ast.Name):
        return node.id
    raise ValueError("no name")


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if value is not True:
            return -value
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_literal(element) for element in elements]
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _literal(value) for key, value in zip(keys, values, strict=True)}
        case ast.Name(id=name) if name in _JSON_NAMES:
            return _JSON_NAMES[name]
    raise ValueError("no literal")


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise ValueError("no key that JSON has")
