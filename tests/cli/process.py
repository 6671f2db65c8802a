"""`puna` as a process: run to its end, or at a pseudo-terminal, as a person has it."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMAND = [sys.executable, "-m", "puna.cli.main"]
ROOT = Path(__file__).parents[2]
TIMEOUT_S = 180


def puna(
    *arguments: str, stdin: str | bytes | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs it with pipes for output. Without `stdin` there is nothing to read."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [*COMMAND, *arguments],
        input=data,
        stdin=subprocess.DEVNULL if data is None else None,
        capture_output=True,
        timeout=TIMEOUT_S,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


class Terminal:
    """`puna` at a pseudo-terminal. `seen` is all that it wrote so far, without colours."""

    def __init__(self, *arguments: str) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.execvpe(COMMAND[0], [*COMMAND, *arguments], {**os.environ, "TERM": "xterm", "COLUMNS": "200"})
        self.seen = ""
        self._read_to = 0

    def type(self, line: str) -> None:
        os.write(self._fd, line.encode() + b"\n")

    def press_ctrl_c(self) -> None:
        """As a person would, a moment after what is to be interrupted can be seen: readline shows its prompt before it
        listens, and a signal in between waits for the next key."""
        time.sleep(0.3)
        os.write(self._fd, b"\x03")

    def press_ctrl_d(self) -> None:
        os.write(self._fd, b"\x04")

    def wait_for(self, text: str) -> str:
        """Waits until `text` is written behind what was waited for before, and gives all of that."""
        deadline = time.monotonic() + TIMEOUT_S
        while text not in self.seen[self._read_to :]:
            assert time.monotonic() < deadline, f"no {text!r} in {self.seen[self._read_to :]!r}"
            assert self._read(), f"it ended without {text!r}: {self.seen[self._read_to :]!r}"
        start = self._read_to
        self._read_to = self.seen.index(text, start) + len(text)
        return self.seen[start : self._read_to]

    def ask(self, line: str) -> str:
        """Types a line at the prompt and gives what is written until the next prompt."""
        self.type(line)
        return self.wait_for(">>> ")

    def exit_code(self) -> int:
        """Reads until it ends."""
        while self._read():
            pass
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(self._fd)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._fd], [], [], TIMEOUT_S)
        try:
            data = os.read(self._fd, 65536) if ready else b""
        except OSError:
            data = b""
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", data.decode("utf-8", "replace"))
        self.seen += plain.replace("\r\n", "\n").replace("\r", "")
        return bool(data)
