"""The bytes of a server-sent event stream, and nothing else.

One frame is `data: <one line of JSON>` and an empty line, with a line `event: <name>` before it where the protocol
names its events; the last frame of completions says `[DONE]`. This file is the only place that knows so.
"""

from __future__ import annotations

MEDIA_TYPE = "text/event-stream"


def sse_frame(data: bytes) -> bytes:
    """`data` is one JSON document without line breaks (msgspec writes none)."""
    return b"data: " + data + b"\n\n"


def named_frame(name: str, data: bytes) -> bytes:
    return b"event: " + name.encode() + b"\n" + sse_frame(data)


DONE = sse_frame(b"[DONE]")

# A comment: clients skip it, and a proxy sees that the stream is alive.
KEEP_ALIVE = b": keep-alive\n\n"
