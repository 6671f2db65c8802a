"""Streams that the server breaks off in the middle: each protocol's clients are told in their own way."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

import httpx

from tests.server.process import ServerProcess

LONG: dict[str, Any] = {"ignore_eos": True, "stream": True}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/responses": {**LONG, "input": "hello", "max_output_tokens": 15_000},
    "/v1/messages": {**LONG, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 15_000},
    "/v1/completions": {**LONG, "prompt": "hello", "max_tokens": 15_000},
}


def read_to_the_end(url: str, body: dict[str, Any], events: list[Any], has_begun: threading.Event) -> None:
    with httpx.stream("POST", url, json=body, timeout=120, verify=False) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                data = line.removeprefix("data: ")
                events.append(data if data == "[DONE]" else json.loads(data))
                if len(events) > 10:
                    has_begun.set()


def test_the_last_event_says_that_the_answer_is_not_whole(patient_model: Path) -> None:
    server = ServerProcess.start(str(patient_model), "--backend", "reference", "--drain", "0.1")
    try:
        events: dict[str, list[Any]] = {path: [] for path in BODIES}
        begun = {path: threading.Event() for path in BODIES}
        readers = [
            threading.Thread(target=read_to_the_end, args=(server.url + path, body, events[path], begun[path]))
            for path, body in BODIES.items()
        ]
        for reader in readers:
            reader.start()
        assert all(event.wait(60) for event in begun.values())
        assert server.stop(signal.SIGTERM) == 0
        for reader in readers:
            reader.join()
    finally:
        server.kill()
    failed = events["/v1/responses"][-1]
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["error"]["code"] == "server_error"
    assert failed["sequence_number"] == len(events["/v1/responses"]) - 1
    assert failed["response"]["output"][0]["content"][0]["text"]
    assert events["/v1/messages"][-1]["type"] == "error"
    assert events["/v1/messages"][-1]["error"]["type"] == "overloaded_error"
    assert set(events["/v1/completions"][-2]) == {"error"}
    assert events["/v1/completions"][-1] == "[DONE]"
