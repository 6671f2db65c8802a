"""The server of a soak, and what can be seen of it from outside: its figures, memory and open files of both processes.

It has two tenants, of which one may run six requests at a time, so that limits are reached as well, and an
administrative key. Stored responses have little room, so that it is full early. Reads /proc.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

KEYS = ["soak-north", "soak-north", "soak-north", "soak-south"]
ADMIN = "soak-admin"
LIMITS = "[tenants.south]\nconcurrency = 6\n"
_SAMPLE = re.compile(r"^puna:(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
SUMS = (
    "prompt_tokens_total",
    "generation_tokens_total",
    "num_preemptions_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "steps_total",
    "computed_tokens_total",
    "http_cpu_seconds_total",
)


@dataclass
class SoakServer:
    process: subprocess.Popen[str]
    folder: tempfile.TemporaryDirectory[str]
    url: str
    keys: list[str]

    @classmethod
    def start(cls, model: Path, log: Path, kv_gib: float, max_seqs: int) -> SoakServer:
        folder = tempfile.TemporaryDirectory()
        limits = Path(folder.name) / "keys.toml"
        limits.write_text(LIMITS)
        options = ["--port", "0", "--kv-gib", str(kv_gib), "--max-seqs", str(max_seqs), "--store-mb", "2"]
        options += ["--keys", str(limits), "--state", f"{folder.name}/state", "--log-level", "warning"]
        environment = {
            **os.environ,
            "PUNA_API_KEYS": "north=soak-north south=soak-south",
            "PUNA_ADMIN_KEY": ADMIN,
        }
        command = [sys.executable, "-m", "puna.cli.main", "serve", str(model), *options]
        with log.open("w") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        server = cls(process, folder, "", KEYS)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Puna serves "):
                server.url = line.split()[-1]
                threading.Thread(target=process.stdout.read, daemon=True).start()
                return server
        raise SystemExit(f"the server ended before it was ready; see {log}")

    def look(self) -> dict[str, float]:
        """Its figures at this moment."""
        engine = self._get("/health").json()["engine"]
        found = {
            "running": engine.get("running", 0),
            "waiting": engine.get("waiting", 0) + engine.get("swapped", 0),
            "live": engine["live_requests"],
            "blocks_used": engine["blocks_used"],
            "blocks_total": engine.get("blocks_total", 0),
            "restarts": engine["restarts"],
            "engine_pid": engine["pid"],
        }
        for name, labels, value in _SAMPLE.findall(self._get("/metrics").text):
            if name in SUMS:
                found[name] = float(value)
            if name == "step_seconds_total":
                phase = re.search(r'phase="(\w+)"', labels)
                found[f"{phase[1] if phase else '?'}_s"] = float(value)
        tenants = self._get("/admin/tenants").json()["data"]
        found["tenants_running"] = sum(tenant["running"] for tenant in tenants)
        for name, pid in (("http", self.process.pid), ("engine", engine["pid"])):
            found |= {f"{name}_{figure}": value for figure, value in of_process(pid).items()}
        return found

    def wait_until_idle(self, timeout_s: float = 120.0) -> dict[str, float]:
        """The figures once nothing runs any more, or when the time is up; connections need a moment to go."""
        until = time.monotonic() + timeout_s
        time.sleep(0.5)
        while (found := self.look())["live"] + found["blocks_used"] + found[
            "tenants_running"
        ] and time.monotonic() < until:
            time.sleep(1.0)
        return found

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()

    def _get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, headers={"authorization": f"Bearer {ADMIN}"}, timeout=300)


def of_process(pid: int) -> dict[str, float]:
    """Megabytes resident, those of them that belong to no file, and open files."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    resident, of_files = (int(fields[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "RssFile"))
    return {
        "resident_mb": round(resident, 2),
        "private_mb": round(resident - of_files, 2),
        "files": len(os.listdir(f"/proc/{pid}/fd")),
    }
