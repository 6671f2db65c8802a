"""A real `puna serve` on a free loopback port, for tests: started, asked over HTTP, stopped by its process id.

`verify=False`, here and in other tests: nothing is encrypted, and httpx would read all of the system's certificates
for every call, which holds up a test's threads long enough for streams to be over before they are looked at.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

START_S = 120
STOP_S = 60


@dataclass
class ServerProcess:
    """`url` is what the ready line said. `lines` is all that was printed so far."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    url: str = ""
    own_state: tempfile.TemporaryDirectory[str] | None = None  # goes when this does

    @classmethod
    def start(cls, *arguments: str, env: dict[str, str] | None = None, port: int = 0) -> ServerProcess:
        own_state = tempfile.TemporaryDirectory()  # those of one name would share one folder
        given = "--state" in arguments
        state = [] if given else ["--state", own_state.name]
        command = [sys.executable, "-m", "puna.cli.main", "serve", *arguments, *state, "--port", str(port)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(env or {})},
            cwd=Path(__file__).parents[2],
        )
        server = cls(process, own_state=own_state)
        try:
            server.wait_until_ready()
        except BaseException:
            server.kill()
            raise
        return server

    def wait_until_ready(self) -> None:
        printed: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            assert self.process.stdout is not None
            for line in self.process.stdout:
                self.lines.append(line)
                printed.put(line)
            printed.put(None)

        threading.Thread(target=read, daemon=True).start()
        deadline = time.monotonic() + START_S
        while not self.url:
            line = printed.get(timeout=max(0.1, deadline - time.monotonic()))
            assert line is not None, f"the server ended before it was ready: {''.join(self.lines)}"
            if line.startswith("Puna serves "):
                self.url = line.split()[-1]

    @property
    def engine_pid(self) -> int:
        return int(self.health()["engine"]["pid"])

    def health(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.url}/health", timeout=30, verify=False).json())

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(
            self.url + path,
            content=content,
            headers={"content-type": "application/json", **headers},
            timeout=120,
            verify=False,
        )

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(self.url + path, headers=headers, timeout=120, verify=False)

    def events(self, path: str, body: dict[str, Any]) -> list[Any]:
        """The data of a streamed answer's events, the last one being "[DONE]"."""
        events: list[Any] = []
        with httpx.stream(
            "POST", self.url + path, json={**body, "stream": True}, timeout=120, verify=False
        ) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            for line in response.iter_lines():
                if line and not line.startswith(":"):  # a comment that keeps a stream alive on a busy machine
                    assert line.startswith("data: ")
                    data = line.removeprefix("data: ")
                    events.append(data if data == "[DONE]" else json.loads(data))
        return events

    def wait_until_idle(self, timeout_s: float = 60) -> dict[str, Any]:
        """Waits until no request is alive and no block is in use; the figures of that moment."""
        deadline = time.monotonic() + timeout_s
        while True:
            engine = dict(self.health()["engine"])
            if engine["live_requests"] == 0 and engine["blocks_used"] == 0:
                return engine
            assert time.monotonic() < deadline, f"still busy: {engine}"
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends the signal and gives the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=STOP_S)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def is_running(pid: int) -> bool:
    """Whether a process is there and not just waiting to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
