"""/ready says whether another request would be taken: not with a full queue, not without an engine."""

from __future__ import annotations

import concurrent.futures
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.server.process import ServerProcess

LONG: dict[str, Any] = {"prompt": "hi", "max_tokens": 16000, "ignore_eos": True, "stream": True}
SHORT: dict[str, Any] = {"prompt": "hi", "max_tokens": 2}


def until(found: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_one_place_is_given_by_priority_and_a_full_queue_is_not_ready(patient_model: Path) -> None:
    limits = "--max-seqs", "1", "--max-waiting", "3", "--policy", "priority"
    server = ServerProcess.start(str(patient_model), "--backend", "reference", "--name", "tiny", *limits)

    def ask(priority: int) -> None:
        headers = {"x-request-id": f"priority={priority}"}
        assert server.post("/v1/completions", {**SHORT, "priority": priority}, **headers).status_code == 200

    def ended() -> list[str]:
        """In the order of the log, which is the server's; clients may be slow to notice."""
        return re.findall(r"priority=(-?\d)", "".join(server.lines))

    def waiting() -> int:
        return int(server.health()["engine"].get("waiting", 0))

    try:
        with (
            httpx.stream("POST", f"{server.url}/v1/completions", json=LONG, timeout=60, verify=False) as running,
            concurrent.futures.ThreadPoolExecutor(3) as pool,
        ):
            lines = running.iter_lines()
            next(lines)
            asked = []
            for count, priority in enumerate((5, 0, -5), 1):
                assert httpx.get(f"{server.url}/ready", verify=False).json() == {"status": "ready"}
                asked.append(pool.submit(ask, priority))
                until(lambda count=count: waiting() == count)  # type: ignore[misc]
            full = httpx.get(f"{server.url}/ready", verify=False)
            assert (full.status_code, full.headers["retry-after"]) == (503, "1")
            assert full.json()["reason"] == "3 sequences wait, the queue takes 3"
            assert httpx.get(f"{server.url}/health", verify=False).status_code == 200, "a full queue is no illness"
            running.close()
            for one in asked:
                one.result(timeout=60)
        until(lambda: len(ended()) == 3)
        assert ended() == ["-5", "0", "5"]
        assert httpx.get(f"{server.url}/ready", verify=False).status_code == 200
    finally:
        server.kill()


def test_a_crash_loop_is_told_and_ends_when_an_engine_can_be_started_again(patient_model: Path, tmp_path: Path) -> None:
    model, away = tmp_path / "model.gguf", tmp_path / "away.gguf"
    model.write_bytes(patient_model.read_bytes())
    server = ServerProcess.start(str(model), "--name", "tiny", "--kv-gib", "0.05")

    def is_told() -> bool:
        return "crash loop" in httpx.get(f"{server.url}/ready", verify=False).text

    try:
        pid = server.engine_pid
        model.rename(away)
        os.kill(pid, signal.SIGKILL)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            asked = pool.submit(server.post, "/v1/completions", SHORT)  # waits, as long as there is hope
            until(is_told)
            refused = asked.result(timeout=60)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_failed")
        assert int(refused.headers["retry-after"]) >= 1
        assert httpx.get(f"{server.url}/health", verify=False).status_code == 503
        away.rename(model)
        until(lambda: httpx.get(f"{server.url}/ready", verify=False).status_code == 200)
        assert server.post("/v1/completions", SHORT).status_code == 200
        assert server.health()["status"] == "ok"
    finally:
        server.kill()
