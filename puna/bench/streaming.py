"""One streamed request to an OpenAI-shaped server, over a connection of its own, with the moments at which text came.

An asyncio protocol that reads HTTP and events itself: a load of thousands of tokens a second has to leave the machine
to the server. It knows chunks and events, not what is asked nor when.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec

from puna.bench.online import Server

MAX_HEAD_BYTES = 1 << 16


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Message | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


@dataclass
class Answer:
    """`arrivals_s`: when text came, on `time.perf_counter`. `error`: its kind, in a few words; None: all went well."""

    arrivals_s: list[float] = field(default_factory=list)
    output_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    text: list[str] = field(default_factory=list)
    error: str | None = None
    detail: str = ""


async def ask(server: Server, path: str, body: bytes, timeout_s: float, *, keep_text: bool = False) -> Answer:
    """Never raises for what the server or the network does: that is the answer's `error`."""
    answer = Answer()
    loop = asyncio.get_running_loop()
    secure = ssl.create_default_context() if server.secure else None
    try:
        async with asyncio.timeout(timeout_s):
            transport, protocol = await loop.create_connection(
                lambda: _Reading(answer, keep_text), server.host, server.port, ssl=secure
            )
            try:
                transport.write(_head(server, path, len(body)) + body)
                await protocol.ended
            finally:
                transport.abort()
    except TimeoutError:
        answer.error = "timeout"
    except OSError as error:
        answer.error, answer.detail = "no connection", str(error)
    if answer.error is None and not answer.arrivals_s:
        answer.error = "no text"
    return answer


def _head(server: Server, path: str, length: int) -> bytes:
    headers = {
        "Host": f"{server.host}:{server.port}",
        "Connection": "close",
        "Accept": "text/event-stream",
        "Content-Length": str(length),
        **server.headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {server.path}{path} HTTP/1.1\r\n{lines}\r\n".encode()


class _Reading(asyncio.Protocol):
    def __init__(self, answer: Answer, keep_text: bool) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answer = answer
        self._keep_text = keep_text
        self._decoder = msgspec.json.Decoder(_Event)
        self._raw = bytearray()  # head or chunks that are not whole
        self._lines = bytearray()  # an event that is not whole
        self._status = 0
        self._is_chunked = False
        self._is_done = False

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._raw += data
        if not self._status and not self._read_head():
            return
        if self._is_chunked:
            self._read_chunks()
        else:
            self._lines += self._raw
            self._raw.clear()
        if self._status == 200:
            self._read_events(now)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._status and self._status != 200:
            self._fail(f"status {self._status}", bytes(self._lines))
        elif not self._is_done:
            self._fail("ended early", str(exc or "").encode())
        self._finish()

    def _read_head(self) -> bool:
        end = self._raw.find(b"\r\n\r\n")
        if end < 0:
            if len(self._raw) > MAX_HEAD_BYTES:
                self._fail("no HTTP", bytes(self._raw[:100]))
                self._finish()
            return False
        first, *headers = bytes(self._raw[:end]).split(b"\r\n")
        del self._raw[: end + 4]
        parts = first.split(b" ")
        self._status = int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 599
        self._is_chunked = any(
            name.strip().lower() == b"transfer-encoding" and b"chunked" in value.lower()
            for name, _, value in (header.partition(b":") for header in headers)
        )
        return True

    def _read_chunks(self) -> None:
        raw, at = self._raw, 0
        while (line_end := raw.find(b"\r\n", at)) >= 0:
            try:
                size = int(bytes(raw[at:line_end]).split(b";")[0], 16)
            except ValueError:
                self._fail("no HTTP", bytes(raw[at:line_end]))
                self._finish()
                return
            begin = line_end + 2
            if size == 0 and self._status != 200:
                self.connection_lost(None)
                return
            if len(raw) < begin + size + 2:
                break
            self._lines += raw[begin : begin + size]
            at = begin + size + 2
        del raw[:at]

    def _read_events(self, now: float) -> None:
        end = self._lines.rfind(b"\n")
        if end < 0:
            return
        whole = bytes(self._lines[: end + 1])
        del self._lines[: end + 1]
        for line in whole.split(b"\n"):
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                self._is_done = True
                self._finish()
                return
            try:
                self._take(self._decoder.decode(data), now, data)
            except msgspec.MsgspecError as error:
                self._fail("no such event", f"{error}: {data[:200]!r}".encode())

    def _take(self, event: _Event, now: float, data: bytes) -> None:
        answer = self._answer
        if event.error is not None:
            self._fail("error in the stream", data)
        for choice in event.choices:
            text = choice.text
            if text is None and choice.delta is not None:
                text = choice.delta.content or choice.delta.reasoning_content
            if not text and not answer.arrivals_s and (choice.text == "" or choice.finish_reason):
                answer.arrivals_s.append(now)  # half a character, or no text at all
            if text:
                answer.arrivals_s.append(now)
                if self._keep_text:
                    answer.text.append(text)
        if event.usage is not None:
            answer.output_tokens = event.usage.completion_tokens
            answer.prompt_tokens = event.usage.prompt_tokens
            details = event.usage.prompt_tokens_details
            answer.cached_tokens = (details.cached_tokens or 0) if details is not None else 0

    def _fail(self, kind: str, detail: bytes) -> None:
        if self._answer.error is None:
            self._answer.error, self._answer.detail = kind, detail[:300].decode("utf-8", "replace")

    def _finish(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
