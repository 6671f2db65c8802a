"""The door that every request passes: who comes, may they, is there still room for them.

It stands in front of the application, so an endpoint that is added later is behind it without doing anything. It counts
the work that runs, and tells tenants what is left to them. It knows paths; it knows nothing of bodies.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puna.errors import PunaError
from puna.server.asked import ASKED
from puna.server.errors import MAX_HEAD_BYTES, head_too_large, not_http
from puna.server.limits import Tenant
from puna.server.loopback import TENANT, TRUSTED
from puna.server.serving import Serving
from puna.server.tenants import set_tenant

OPEN = frozenset({"/health", "/ready", "/version", "/openapi.json"})
ADMIN = "/admin/"
METRICS = "/metrics"  # for the administrator, if there is one; else for whoever may ask the model
_ADDRESS = re.compile(r"https?://[^/]*")
_READING = ("GET", "HEAD", "OPTIONS")


class Door:
    """`answer_error` is how the application answers a PunaError."""

    def __init__(
        self, app: ASGIApp, serving: Serving, answer_error: Callable[[Request, Exception], Awaitable[Response]]
    ) -> None:
        self._app = app
        self._serving = serving
        self._answer_error = answer_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            _check_head(scope)
            _take_whole_address(scope)
            tenant = self._let_in(scope)
            if tenant is None:
                await self._app(scope, receive, send)
            else:
                await self._serve(tenant, scope, receive, send)
        except PunaError as error:
            response = await self._answer_error(Request(scope), error)
            await response(scope, receive, send)

    def _let_in(self, scope: Scope) -> Tenant | None:
        """None for what anyone may see, and for the administrator. Raises RequestError."""
        path, headers, tenants = scope["path"], Headers(scope=scope), self._serving.tenants
        if self._is_own(scope):
            return tenants.named(scope[TENANT])
        if path in OPEN:
            return None
        if path == METRICS and not tenants.has_admin:
            tenants.of(headers)
            return None
        if path == METRICS or path.startswith(ADMIN):
            tenants.check_admin(headers)
            return None
        return tenants.of(headers)

    def _is_own(self, scope: Scope) -> bool:
        """Whether this server asks itself, for a batch: that bounds itself, and goes on another time."""
        return scope.get(TRUSTED) is self._serving

    async def _serve(self, tenant: Tenant, scope: Scope, receive: Receive, send: Send) -> None:
        """Reading is free; what makes work is limited and counted."""
        set_tenant(scope, tenant)
        if (asked := ASKED.get()) is not None:
            asked.tenant = tenant.name
        if scope["method"] in _READING:
            await self._app(scope, receive, send)
            return

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *tenant.headers()]
            await send(message)

        self._serving.draining.check()
        if self._is_own(scope):
            await self._app(scope, receive, send)
            return
        try:
            tenant.enter()
        except PunaError as error:
            response = await self._answer_error(Request(scope), error)
            await response(scope, receive, send_with_limits)
            return
        self._serving.draining.running += 1
        try:
            await self._app(scope, receive, send_with_limits)
        finally:
            self._serving.draining.running -= 1
            tenant.leave()


def _check_head(scope: Scope) -> None:
    """RequestError where a head says what is not HTTP/1.1, or two lengths of its body, of which a proxy may have taken
    the other one; and (431) where one that came in one piece is larger than one in many could be."""
    names = [name for name, _ in scope["headers"]]
    if scope["http_version"] not in ("1.0", "1.1"):
        raise not_http(f"its version is {scope['http_version'][:8]}")
    if b"transfer-encoding" in names and b"content-length" in names:
        raise not_http("it has both transfer-encoding and content-length")
    size = len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(n) + len(v) + 4 for n, v in scope["headers"])
    if size > MAX_HEAD_BYTES:
        raise head_too_large(MAX_HEAD_BYTES)


def _take_whole_address(scope: Scope) -> None:
    """A path may come with the server's address before it, as clients send it that take this server for a proxy."""
    found = _ADDRESS.match(scope["path"])
    if found is not None:
        scope["path"] = scope["path"][found.end() :] or "/"
        scope["raw_path"] = scope["path"].encode()
