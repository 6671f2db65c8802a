"""Runs a workload against a server that speaks OpenAI's `/v1/completions`: Puna's own, or another one.

Every sequence is a stream of its own, on a connection of its own, all opened at once. Prompts are token ids; times are
those at which pieces of text arrive, so a server that sends several tokens in one piece shows fewer gaps.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from puna.bench.offline import Run
from puna.bench.workload import Workload
from puna.errors import EngineError, InputError

ANY_VOCABULARY = 256  # ids below this stand for something in every model
TIMEOUT_S = 900
SHOWN_CHARS = 300


@dataclass(frozen=True)
class Server:
    """Where to send requests, and what the model is called there."""

    host: str
    port: int
    path: str
    model: str
    headers: dict[str, str]
    secure: bool

    def connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
        return kind(self.host, self.port, timeout=TIMEOUT_S)


def find_server(url: str, api_key: str | None = None) -> Server:
    """Asks the server at `url` (with or without /v1) for its first model. InputError for what is no URL, EngineError
    where nobody answers there as such a server does."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:  # brackets of an address that do not close, say
        parts = urllib.parse.urlsplit("")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        port = 0
    if parts.scheme not in ("http", "https") or not parts.hostname or not port:
        raise InputError(f"{url!r} is not the address of a server; try http://127.0.0.1:8000", param="url")
    path = parts.path.rstrip("/").removesuffix("/v1") + "/v1"
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
    server = Server(parts.hostname, port, path, "", headers, parts.scheme == "https")
    connection = server.connect()
    try:
        connection.request("GET", f"{path}/models", headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise EngineError(f"{url} answers {answer.status} to a question for its models: {_shown(body)}")
        name = str(json.loads(body)["data"][0]["id"])
    except (OSError, http.client.HTTPException) as error:
        raise EngineError(f"cannot reach {url}: {error}; is the server running?") from None
    except (ValueError, LookupError, TypeError):
        raise EngineError(f"what {url} says of its models is not what an OpenAI-shaped server says") from None
    finally:
        connection.close()
    return Server(server.host, port, path, name, headers, server.secure)


def run_online(server: Server, workload: Workload, repetition: int) -> Run:
    """Raises EngineError where a stream fails or ends early."""
    prompts = workload.prompts(repetition, ANY_VOCABULARY)
    barrier = threading.Barrier(len(prompts))
    begun: list[float] = []

    def one(row: int) -> tuple[list[float], int, int]:
        body = json.dumps(_body(server, workload, prompts[row], row)).encode()
        barrier.wait()
        begun.append(time.perf_counter())
        return _stream(server, body)

    with ThreadPoolExecutor(len(prompts)) as pool:
        try:
            streams = list(pool.map(one, range(len(prompts))))
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"a stream broke: {error}") from None
    short = [count for _, count, _ in streams if count != workload.output_len]
    if short:
        raise EngineError(
            f"an answer has {short[0]} tokens instead of {workload.output_len}; does the server know ignore_eos, and "
            "is its context long enough?"
        )
    start = min(begun)
    return Run(
        arrivals_s=[[at - start for at in times] for times, _, _ in streams],
        counts=[count for _, count, _ in streams],
        cached_tokens=sum(cached for _, _, cached in streams),
    )


def _body(server: Server, workload: Workload, prompt: list[int], row: int) -> dict[str, Any]:
    drawn = {"top_p": workload.top_p, "seed": workload.seed + row} if workload.temperature > 0 else {}
    if workload.temperature > 0 and workload.top_k > 0:
        drawn["top_k"] = workload.top_k
    if workload.temperature > 0 and workload.min_p > 0:
        drawn["min_p"] = workload.min_p
    return {
        "model": server.model,
        "prompt": prompt,
        "max_tokens": workload.output_len,
        "temperature": workload.temperature,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **drawn,
    }


def _stream(server: Server, body: bytes) -> tuple[list[float], int, int]:
    """When pieces came, how many tokens they were, and how many of the prompt came from a cache."""
    connection = server.connect()
    try:
        connection.request("POST", f"{server.path}/completions", body, server.headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise EngineError(f"the server answers {answer.status}: {_shown(answer.read())}")
        times: list[float] = []
        usage: dict[str, Any] = {}
        for line in answer:
            data = line.strip().removeprefix(b"data:").strip()
            if not line.startswith(b"data:") or data == b"[DONE]":
                continue
            piece = json.loads(data)
            if piece.get("error"):
                raise EngineError(f"the server ended a stream with an error: {_shown(data)}")
            if piece.get("choices"):
                times.append(time.perf_counter())
            usage = piece.get("usage") or usage
    finally:
        connection.close()
    if not times:
        raise EngineError("a stream ended before its first token")
    details = usage.get("prompt_tokens_details") or {}
    return times, int(usage.get("completion_tokens", len(times))), int(details.get("cached_tokens") or 0)


def _shown(body: bytes) -> str:
    return body[:SHOWN_CHARS].decode("utf-8", "replace")
