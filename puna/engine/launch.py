"""Starts the engine's process and ends it: the socket pair, the shared board, the child.

The child is a fresh interpreter, not a fork. It inherits one end of a socket pair and a few bytes of shared memory on
which it notes its progress; it ends when the other end of the socket closes, however that comes about.
"""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import puna
from puna.engine.messages import BOARD_BYTES, BOARD_OPERATORS, BOARD_STEP_NS, BOARD_STEPS


class Board:
    """What the engine notes in shared memory, as the client reads it."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    @property
    def operators(self) -> int:
        return self._read(BOARD_OPERATORS)

    @property
    def steps(self) -> int:
        return (self._read(BOARD_STEPS) + 1) // 2

    @property
    def in_step(self) -> bool:
        return self._read(BOARD_STEPS) % 2 == 1

    @property
    def stamped_s(self) -> float:
        """When the last step began or ended, on the monotonic clock; 0.0 before the first."""
        return self._read(BOARD_STEP_NS) / 1e9

    def _read(self, index: int) -> int:
        return int.from_bytes(self._memory[8 * index : 8 * index + 8], sys.byteorder)


@dataclass(eq=False)
class EngineProcess:
    """A started child. `connection` is the client's end of the socket."""

    child: subprocess.Popen[bytes]
    connection: socket.socket
    board: Board

    @property
    def pid(self) -> int:
        return self.child.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self.child.poll()

    def kill(self) -> None:
        """Ends it at once and waits for it."""
        self.child.kill()
        self.child.wait()
        self.connection.close()

    def end(self, timeout_s: float) -> int:
        """Waits for it to end by itself, kills it if it takes too long. Returns the exit code."""
        try:
            return self.child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.child.kill()
            return self.child.wait()


def launch() -> EngineProcess:
    """Starts `python -m puna.engine.process`. Its standard error is ours; it reads and prints nothing."""
    ours, theirs = socket.socketpair()
    with _memory_file() as board:
        board.truncate(BOARD_BYTES)
        memory = mmap.mmap(board.fileno(), BOARD_BYTES)
        command = [sys.executable, "-m", "puna.engine.process", str(theirs.fileno()), str(board.fileno())]
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), board.fileno()),
                env=_environment(),
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
    return EngineProcess(child, ours, Board(memory))


def _memory_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("puna-board"), "r+b")
    return tempfile.TemporaryFile()


def _environment() -> dict[str, str]:
    """Ours, with the folder that this very package was imported from, wherever the child starts."""
    home = str(Path(puna.__file__).parent.parent)
    path = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": home + (os.pathsep + path if path else "")}
