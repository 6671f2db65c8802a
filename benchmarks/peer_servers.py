"""The servers that serve_peers.py measures, each as its own real processes, with its own defaults.

A server is ready when it has answered one token. One that waits for its turn is stopped (SIGSTOP), so that nothing of
it spins. Processor time is read from /proc.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peer_engines import IDLE_S, EngineFailedError, vllm_environment

READY_S = 600
STOP_S = 20


class PeerServer:
    """Started and ready, then stopped until `resume`. `ready_s`: from its command to its first answer."""

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], port: int, log: Path) -> None:
        self.name, self.url, self._log = name, f"http://127.0.0.1:{port}", log
        started = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
        try:
            self._wait_until_ready(started + READY_S)
        except BaseException:
            self.close()
            raise
        self.ready_s = time.perf_counter() - started
        self.pause()

    @property
    def pid(self) -> int:
        return self._process.pid

    def health(self) -> dict[str, Any]:
        """Of Puna's: its figures."""
        with urllib.request.urlopen(f"{self.url}/health", timeout=30) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found

    def resume(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)
        time.sleep(IDLE_S)

    def pause(self) -> None:
        os.killpg(self.pid, signal.SIGSTOP)

    def close(self) -> None:
        if self._process.poll() is None:
            os.killpg(self.pid, signal.SIGCONT)
            os.killpg(self.pid, signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()

    def _wait_until_ready(self, until: float) -> None:
        body = json.dumps({"prompt": "Hello", "max_tokens": 1, "temperature": 0}).encode()
        while time.perf_counter() < until:
            if self._process.poll() is not None:
                last = self._log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
                raise EngineFailedError(f"{self.name} ended: {last[0][:300]} (all of it is in {self._log})")
            try:
                asked = urllib.request.Request(f"{self.url}/v1/completions", body, {"Content-Type": "application/json"})
                urllib.request.urlopen(asked, timeout=120).read()
                return
            except (urllib.error.URLError, OSError, http.client.HTTPException):
                time.sleep(0.02)
        raise EngineFailedError(f"{self.name} has not answered after {READY_S} s (what it said is in {self._log})")


def puna_server(model: Path, log: Path) -> PeerServer:
    port = free_port()
    command = [sys.executable, "-m", "puna.cli.main", "serve", str(model), "--name", "model", "--port", str(port)]
    root = Path(__file__).resolve().parents[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": str(root), "PYTHONPYCACHEPREFIX": str(log.parent.resolve() / "bytecode")}
    # As an installation leaves it: modules are not compiled while a server starts.
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(root / "puna")], env=environment, check=True)
    return PeerServer("Puna", command, environment, port, log)


def llama_server(name: str, folder: Path, model: Path, log: Path) -> PeerServer:
    port = free_port()
    command = [str(folder / "bin" / "llama-server"), "-m", str(model), "--port", str(port), "--alias", "model"]
    return PeerServer(name, command, os.environ, port, log)


def vllm_server(environment_folder: Path, model_folder: Path, log: Path) -> PeerServer:
    port = free_port()
    command = [
        str(environment_folder / "bin" / "vllm"),
        "serve",
        str(model_folder),
        "--served-model-name",
        "model",
        "--port",
        str(port),
    ]
    return PeerServer("vLLM bf16", command, vllm_environment(environment_folder), port, log)


def processor_s(pid: int) -> float:
    """Of one process, its threads included, since it was started."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
