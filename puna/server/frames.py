"""The bytes of a server-sent event stream, and nothing else.

One frame is `data: <one line of JSON>` and an empty line; the last frame says `[DONE]`. This file is the only place
that knows so.
"""

from __future__ import annotations

MEDIA_TYPE = "text/event-stream"


def sse_frame(data: bytes) -> bytes:
    """`data` is one JSON document without line breaks (msgspec writes none)."""
    return b"data: " + data + b"\n\n"


DONE = sse_frame(b"[DONE]")
