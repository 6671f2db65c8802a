"""Encoding with expressions of a stranger's: in a process of its own that the system ends when its time is up.

An expression in tokenizer.json can take hours for a page of text, and nothing interrupts the library that runs it.
Those that public models have, and such as cannot go back over what they matched, need no guard; `unknown_expression`
finds any other. What the process does, and its messages, are encoding_process.py's.
"""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from puna.models.encoders import LibraryReading
from puna.models.pretokenizers import PRE_TOKENIZERS

LOAD_S = 60.0  # of processor time, to read a tokenizer.json
TEXT_S = 5.0  # for a text, and one more for so many characters; ordinary expressions take a tenth of that
CHARACTERS_A_SECOND = 100_000
LENGTH = struct.Struct("<Q")

# Alternatives of single characters and classes, of which the last may repeat: nothing is ever tried again.
_ONE = r"(?:\\[pP]\{\^?\w{1,20}\}|\\[^\s\w]|\\[dDsSwWnrt]|[^\\\[\](){}*+?|.^$]|\[(?:[^\\\[\]&]|\\.)+\])"
_ALTERNATIVE = rf"{_ONE}+(?:[+*]|\{{[0-9]{{1,3}}(?:,[0-9]{{0,3}})?\}})?"
_PLAIN = re.compile(rf"{_ALTERNATIVE}(?:\|{_ALTERNATIVE})*", re.DOTALL | re.ASCII)
MAX_PLAIN = 400  # characters


def unknown_expression(described: Mapping[str, Any]) -> str | None:
    """The first in a tokenizer.json that is to be run apart."""
    known = {_spelled(pattern) for cut in PRE_TOKENIZERS.values() for pattern in cut.patterns}
    parts = [described.get("normalizer"), described.get("pre_tokenizer")]
    return next((found for found in _expressions(parts) if _spelled(found) not in known and not _is_plain(found)), None)


def _expressions(parts: list[Any]) -> Iterator[str]:
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            if isinstance(found := part.get("Regex"), str):
                yield found
            parts += part.values()
        elif isinstance(part, list):
            parts += part


def _spelled(pattern: str) -> str:
    """One of several ways to write the same."""
    return pattern.replace("\r", r"\r").replace("\n", r"\n").replace(r"\"", '"')


def _is_plain(pattern: str) -> bool:
    return len(pattern) <= MAX_PLAIN and _PLAIN.fullmatch(pattern) is not None


class GuardedEncoder:
    """A tokenizer.json in another process, started anew where it was ended. Raises ValueError where the library does,
    and where time is up. Thread-safe; texts wait for each other."""

    def __init__(self, text: str, expression: str) -> None:
        self._opening = {"tokenizer": text}
        self._expression = expression
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._end_child: Callable[[], object] = lambda: None
        self._closed = False
        with self._lock:
            _, self.reading = self._living_child()

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        seconds = TEXT_S + len(text) / CHARACTERS_A_SECOND
        with self._lock:
            child, _ = self._living_child()
            answer = self._ask(child, {"text": text, "special": parse_special}, seconds)
        ids: list[int] = answer["ids"]
        return ids

    def close(self) -> None:
        """Ends the process, whatever it is doing: who waits for a text, and who comes later, gets a ValueError."""
        self._closed = True
        self._end_child()

    def _living_child(self) -> tuple[_Child, LibraryReading]:
        if self._child is not None and self._child.is_alive():
            return self._child, self.reading
        self._end_child()  # its pipes are still open
        self._child = child = _Child()
        self._end_child = weakref.finalize(self, child.end)
        if self._closed:  # maybe while it was started
            self._end_child()
        return child, LibraryReading.from_json(self._ask(child, self._opening, LOAD_S))

    def _ask(self, child: _Child, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        try:
            answer = child.ask({**request, "seconds": seconds})
        except EOFError:
            self._child = None
            self._end_child()
            if self._closed:
                raise ValueError("the process that encodes is ended, for the program ends") from None
            code = child.exit_code()
            if code == -signal.SIGPROF:
                raise ValueError(
                    f"it takes more than {seconds:.0f} s; an expression such as {self._expression[:80]!r} goes back "
                    "over the text too often; send a shorter text, or mend the expression in tokenizer.json"
                ) from None
            raise ValueError(f"the process that encodes ended with code {code}") from None
        except BaseException:
            self._child = None
            self._end_child()
            raise
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer


class _Child:
    def __init__(self) -> None:
        home = str(Path(__file__).parents[2])  # what `puna` was imported from, wherever the child starts
        path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "puna.models.encoding_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # where the library writes its own errors at length
            env={**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"},
        )

    def is_alive(self) -> bool:
        """And of this process: a fork has no part in it."""
        return self._owner == os.getpid() and self._process.poll() is None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Raises EOFError where it has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            send(self._process.stdin, request)
            answer: dict[str, Any] = receive(self._process.stdout)
        except (BrokenPipeError, ValueError):  # the latter where another thread has closed the pipes
            raise EOFError from None
        return answer

    def exit_code(self) -> int:
        return self._process.wait()

    def end(self) -> None:
        if self._owner == os.getpid():
            with suppress(BrokenPipeError), self._process:  # part of a text may not have been sent
                self._process.kill()


def send(pipe: IO[bytes], message: Any) -> None:
    body = json.dumps(message).encode()
    pipe.write(LENGTH.pack(len(body)))
    pipe.write(body)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:
    """Raises EOFError at the end, also amid a message."""
    (length,) = LENGTH.unpack(_exactly(pipe, LENGTH.size))
    return json.loads(_exactly(pipe, length))


def _exactly(pipe: IO[bytes], count: int) -> bytes:
    data = pipe.read(count)
    if len(data) < count:
        raise EOFError
    return data
