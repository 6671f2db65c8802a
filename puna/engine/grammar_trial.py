"""A trial of a grammar in a process of its own, which may take too long, too much memory, or crash.

What comes back is the text that compiled there within its limits, or why not. So a grammar that the engine compiles
has been compiled before, with the same vocabulary. The process is started with the first form, and anew after one that
ended it. What it does is grammar_process.py's; nothing here imports the grammar library.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from puna.engine.grammar_library import TokenBytes
from puna.engine.structure import StructuredOutputs
from puna.errors import InputError

START_S = 60.0  # of processor time, to read the vocabulary
TRIAL_S = 5.0  # of processor time, for one grammar; ordinary ones take a hundredth of that
LENGTH = struct.Struct("<Q")
T = TypeVar("T")


class Opening(msgspec.Struct, frozen=True):
    vocabulary: TokenBytes
    seconds: float


class Trial(msgspec.Struct, frozen=True):
    form: StructuredOutputs
    seconds: float


class Verdict(msgspec.Struct, frozen=True):
    """`text`: what compiled. `error`: why it did not, or will not do."""

    text: str | None = None
    error: str | None = None


class GrammarTrial:
    """One form after another; for one thread, but `close`, which any may call."""

    def __init__(self, vocabulary: TokenBytes, seconds: float = TRIAL_S) -> None:
        self._vocabulary = vocabulary
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def run(self, form: StructuredOutputs) -> str:
        """The text of the grammar. InputError, that names the form's field, where it does not compile."""
        try:
            child = self._living()
            verdict = _ask(child, Trial(form, self._seconds))
        except (EOFError, OSError, ValueError):  # the last where another thread has closed the pipes
            raise InputError(self._cause(), param=form.named) from None
        if verdict.text is None:
            raise InputError(verdict.error or "it cannot be compiled", param=form.named)
        return verdict.text

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self._closed = True
        if self._process is not None:
            _end(self._process)

    def _living(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        if self._process is not None:
            _end(self._process)  # its pipes are still open
        self._process = child = _start()
        if self._closed:  # maybe while it was started
            _end(child)
        _ask(child, Opening(self._vocabulary, START_S))
        return child

    def _cause(self) -> str:
        if self._closed or self._process is None:
            return "it was not compiled: the engine ends"
        _end(self._process)
        code = self._process.wait()
        if code in (-signal.SIGPROF, -signal.SIGXCPU):
            return (
                f"it takes more than {self._seconds:.0f} s to compile; make it simpler: fewer alternatives, smaller "
                "repetitions, less nesting"
            )
        return "it takes too much memory to compile, or is nested too deeply; make it simpler"


def _start() -> subprocess.Popen[bytes]:
    home = str(Path(__file__).parents[2])  # what `puna` was imported from, wherever the child starts
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-m", "puna.engine.grammar_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # where the library writes of its own panics
        env={**os.environ, "PYTHONPATH": path},
    )


def _end(child: subprocess.Popen[bytes]) -> None:
    with suppress(BrokenPipeError), child:  # part of a form may not have been sent
        if child.poll() is None:
            child.kill()


def _ask(child: subprocess.Popen[bytes], message: Opening | Trial) -> Verdict:
    """EOFError or OSError where it has ended."""
    assert child.stdin is not None
    assert child.stdout is not None
    send(child.stdin, message)
    return receive(child.stdout, Verdict)


def send(pipe: IO[bytes], message: msgspec.Struct) -> None:
    body = msgspec.msgpack.encode(message)
    pipe.write(LENGTH.pack(len(body)))
    pipe.write(body)
    pipe.flush()


def receive(pipe: IO[bytes], kind: type[T]) -> T:
    """EOFError at the end, also amid a message."""
    (length,) = LENGTH.unpack(_exactly(pipe, LENGTH.size))
    return msgspec.msgpack.decode(_exactly(pipe, length), type=kind)


def _exactly(pipe: IO[bytes], count: int) -> bytes:
    data = pipe.read(count)
    if len(data) < count:
        raise EOFError
    return data
