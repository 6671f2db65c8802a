"""Streams on which nothing happens for a while: comments keep them open, and cost a busy stream nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest

from puna.errors import OverloadedError
from puna.server import delivery
from puna.server.delivery import StreamedAnswer
from puna.server.frames import KEEP_ALIVE


class Chunk(msgspec.Struct):
    n: int


def sent(chunks: AsyncGenerator[Any]) -> tuple[int, bytes]:
    """The status and the bytes of a stream whose client stays."""
    messages: list[dict[str, Any]] = []

    async def play() -> None:
        async def receive() -> dict[str, Any]:
            await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            messages.append(message)

        await StreamedAnswer(chunks, {})({"type": "http"}, receive, send)

    asyncio.run(play())
    assert [message["type"] for message in messages].count("http.response.start") == 1
    return messages[0]["status"], b"".join(message["body"] for message in messages[1:])


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "QUIET_S", 0.1)


def test_a_quiet_stream_has_comments_between_its_chunks() -> None:
    async def chunks() -> AsyncGenerator[Chunk]:
        yield Chunk(1)
        await asyncio.sleep(0.35)
        yield Chunk(2)
        yield Chunk(3)

    status, body = sent(chunks())
    assert status == 200
    before, _, after = body.partition(KEEP_ALIVE)
    assert before == b'data: {"n":1}\n\n'
    assert after.replace(KEEP_ALIVE, b"") == b'data: {"n":2}\n\ndata: {"n":3}\n\ndata: [DONE]\n\n'


def test_a_refusal_has_its_own_status_unless_it_comes_so_late_that_the_stream_has_begun() -> None:
    async def refused(after_s: float) -> AsyncGenerator[Chunk]:
        await asyncio.sleep(after_s)
        raise OverloadedError("full")
        yield Chunk(1)

    status, body = sent(refused(0))
    assert status == 429
    assert body.startswith(b'{"error"')
    status, body = sent(refused(0.25))
    assert status == 200
    assert body.startswith(KEEP_ALIVE)
    assert body.replace(KEEP_ALIVE, b"").startswith(b'data: {"error"')
    assert body.endswith(b"data: [DONE]\n\n")
