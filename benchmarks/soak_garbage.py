"""What the worst clients of a soak send: no JSON, wrong values, no HTTP, halves of requests, and all of it slowly.

Every attempt says what came back: a status, 0 where the connection was closed without one, NO_ANSWER where neither
came. Each attempt has a connection of its own, opened by hand, since clients of HTTP refuse to send such things.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Awaitable, Callable

WAIT_S = 300.0  # for an answer
NO_ANSWER = -1

GOOD = json.dumps({"prompt": "hello", "max_tokens": 4}).encode()
BODIES = (
    b"{",
    b"not json at all",
    b'{"prompt": "x", "max_tokens": "many"}',
    b'{"prompt": 5}',
    b'{"prompt": "x", "temperature": -1}',
    b'{"prompt": "x", "n": 1000000}',
    b'{"prompt": "x", "max_tokens": 999999999999999999999}',
    b'{"prompt": "\xff\xfe"}',
    b'{"prompt": "x", "model": "another"}',
    b'{"prompt": "x", "logit_bias": {"a": "b"}}',
    b'{"prompt": [[[[1]]]]}',
    b'{"prompt": [-1, 99999999]}',
    b"[" * 20_000,
    b'{"a":' * 5_000,
    b'{"prompt": "' + b"word " * 20_000 + b'"}',
    b"\x00" * 300,
    b"",
)
BYTES = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    b"GET / HTTP/9.9\r\n\r\n",
    b"\r\n\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
    b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n",
    bytes(random.Random(0).randrange(256) for _ in range(2_000)),
)


class Garbage:
    """One client without manners. `wait_s`: for an answer, before it gives up an attempt."""

    def __init__(self, host: str, port: int, key: str, chance: random.Random, wait_s: float = WAIT_S) -> None:
        self.host, self.port, self.key, self.chance, self.wait_s = host, port, key, chance, wait_s

    async def attempt(self) -> tuple[str, int]:
        """What was tried, and the status that came back."""
        kinds: tuple[Callable[[], Awaitable[int]], ...] = (
            self._wrong_body,
            self._wrong_body,
            self._wrong_body,
            self._wrong_bytes,
            self._wrong_key,
            self._half_closed,
            self._half_a_body,
            self._slow_head,
        )
        kind = self.chance.choice(kinds)
        try:
            async with asyncio.timeout(self.wait_s):
                return kind.__name__, await kind()
        except TimeoutError:
            return kind.__name__, NO_ANSWER
        except OSError:
            return kind.__name__, 0  # it was closed while we wrote

    async def _wrong_body(self) -> int:
        return await self._send(self._head(body := self.chance.choice(BODIES)) + body)

    async def _wrong_bytes(self) -> int:
        return await self._send(self.chance.choice(BYTES))

    async def _wrong_key(self) -> int:
        return await self._send(self._head(GOOD, key="sk-wrong") + GOOD)

    async def _half_closed(self) -> int:
        """Closes its side behind half a body, and reads."""
        return await self._send(self._head(GOOD) + GOOD[:5], half_close=True)

    async def _half_a_body(self) -> int:
        """Is gone behind half a body."""
        return await self._send(self._head(GOOD) + GOOD[:5], read=False)

    async def _slow_head(self) -> int:
        _, writer = await asyncio.open_connection(self.host, self.port)
        try:
            for byte in self._head(GOOD)[: self.chance.randint(5, 60)]:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.2)
            return 0
        finally:
            await _closed(writer)

    def _head(self, body: bytes, key: str | None = None) -> bytes:
        lines = (
            "POST /v1/completions HTTP/1.1",
            "host: soak",
            "content-type: application/json",
            f"authorization: Bearer {key or self.key}",
            f"content-length: {len(body)}",
            "connection: close",
        )
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def _send(self, data: bytes, *, half_close: bool = False, read: bool = True) -> int:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(data)
            await writer.drain()
            if half_close:
                writer.write_eof()
            if not read:
                return 0
            while (line := await reader.readline()).startswith(b"HTTP/1.1 1"):  # says that it still works on it
                while (await reader.readline()).strip():
                    pass
            return int(line.split()[1]) if line.startswith(b"HTTP/") else 0
        finally:
            await _closed(writer)


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
