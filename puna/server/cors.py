"""Cross-origin requests: off, unless origins are named whose pages may ask this server from a browser.

A page elsewhere cannot send JSON here without a preflight, and without this no preflight is answered. Keys still count:
what a browser is allowed is to ask, and to see the answer.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_AGE_S = 600
_METHODS = "GET, POST, DELETE"
_EXPOSED = "puna-ignored, puna-truncated-tokens, retry-after, x-request-id"


class Cors:
    """`origins`: as a browser sends them (scheme://host:port), or "*" for all."""

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        origin = headers.get("origin")
        if origin is None or not (origin in self._origins or "*" in self._origins):
            await self._app(scope, receive, send)
            return
        allowed = [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"origin")]
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            wanted = headers.get("access-control-request-headers", "content-type, authorization")
            preflight = {
                "access-control-allow-methods": _METHODS,
                "access-control-allow-headers": wanted,
                "access-control-max-age": str(MAX_AGE_S),
            }
            response = Response(status_code=204, headers=preflight)
            response.raw_headers += allowed
            await response(scope, receive, send)
            return

        async def send_allowed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    *allowed,
                    (b"access-control-expose-headers", _EXPOSED.encode()),
                ]
            await send(message)

        await self._app(scope, receive, send_allowed)
