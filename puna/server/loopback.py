"""Asks this server's own application without a socket: a batch's line goes through all that a client's request does.

The scope carries the application's own mark, which nothing that comes over HTTP can have, in place of a key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message

TRUSTED = "puna.trusted"
TENANT = "puna.tenant"


@dataclass
class LoopbackAnswer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


async def ask(app: ASGIApp, path: str, body: bytes, mark: object, tenant: str = "") -> LoopbackAnswer:
    """POSTs JSON to `path` as `tenant`. Cancelling it is what a client does that closes its connection."""
    sent = False
    answer = LoopbackAnswer()
    body_parts: list[bytes] = []

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await _for_ever()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode() for name, value in message.get("headers", [])}
        else:
            body_parts.append(message.get("body", b""))

    await app(_scope(path, len(body), mark, tenant), receive, send)
    answer.body = b"".join(body_parts)
    return answer


async def _for_ever() -> None:
    import asyncio

    await asyncio.get_running_loop().create_future()


def _scope(path: str, length: int, mark: object, tenant: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(length).encode())],
        "client": None,
        "server": None,
        TRUSTED: mark,
        TENANT: tenant,
    }
