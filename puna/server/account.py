"""Keeps account of every HTTP request: its id, one line of the log at its end, its span where spans are wanted.

It stands around the whole application, so that requests refused at the door and those that hit a bug have their line as
well. No prompt and no answer is logged unless that is asked for. It knows nothing of what an endpoint does.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puna.server.asked import ASKED, NO_STATUS, Asked

if TYPE_CHECKING:
    from puna.server.serving import Serving
    from puna.server.tracing import Tracing

REQUEST_ID = "x-request-id"
SHOWN_CHARS = 2000  # of a prompt, where prompts are logged
QUIET_PATHS = frozenset({"/health", "/ready", "/metrics", "/version"})  # asked every few seconds: logged as debug

log = logging.getLogger("puna.requests")
_WELL_FORMED = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class Account:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, serving: Serving, *, log_prompts: bool = False, tracing: Tracing | None) -> None:
        self._app = app
        self._serving = serving
        self._log_prompts = log_prompts
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = Asked(_request_id(headers), scope["method"], scope["path"])

        async def noting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                asked.status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = asked.request_id
            await send(message)

        token = ASKED.set(asked)
        try:
            await self._app(scope, receive, noting_send)
        finally:
            ASKED.reset(token)
            self._end(asked, headers)

    def _end(self, asked: Asked, headers: Headers) -> None:
        level = logging.DEBUG if asked.path in QUIET_PATHS else logging.INFO
        if log.isEnabledFor(level):
            log.log(level, "request", extra={"fields": self._fields(asked)})
        if self._tracing is not None and asked.watches:
            self._tracing.record(asked, headers, self._serving.name)

    def _fields(self, asked: Asked) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "request_id": asked.request_id,
            "method": asked.method,
            "path": asked.path[:200],
            "status": asked.status or NO_STATUS,
            "tenant": asked.tenant,
            "duration_s": round(time.monotonic() - asked.since_s, 4),
        }
        if asked.watches:
            first_s = asked.first_token_s
            fields |= {
                "model": self._serving.name,
                "answer_id": asked.watches[0].request.request_id.rpartition("-")[0],
                "prompt_tokens": asked.prompt_tokens,
                "cached_tokens": asked.cached_tokens,
                "output_tokens": asked.generated_tokens,
                "ttft_s": None if first_s is None else round(first_s, 4),
                "finish": ",".join(asked.finish_reasons),
            }
            if self._log_prompts:
                fields["prompts"] = [self._prompt(watch.request.prompt_token_ids) for watch in asked.watches]
        return {name: value for name, value in fields.items() if value is not None}

    def _prompt(self, token_ids: list[int]) -> str:
        return self._serving.tokenizer.decode(token_ids[:SHOWN_CHARS], skip_special_tokens=False)[:SHOWN_CHARS]


def _request_id(headers: Headers) -> str:
    """The client's own, where it could not be anything else than an id."""
    given = headers.get(REQUEST_ID, "")
    return given if _WELL_FORMED.fullmatch(given) else f"req-{secrets.token_hex(12)}"
