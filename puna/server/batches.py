"""`/v1/batches`: files of requests that are answered in the background and survive a restart.

Knows OpenAI's shapes of batches; running them is batch_work.py's.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from puna.server.batch_lines import ENDPOINTS
from puna.server.batch_work import Batch, BatchWork
from puna.server.body import decode, read_body
from puna.server.delivery import json_response
from puna.server.errors import RequestError
from puna.server.files import find, page
from puna.server.ignored import ignored_by, read_query
from puna.server.serving import Serving

_WINDOW = re.compile(r"([1-9][0-9]{0,3})(h|d)")
_MAX_METADATA = 16


class BatchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None


def batch_routes(serving: Serving) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/batches")
    async def create(request: Request) -> Response:
        tenant, work = serving.owner(request), _work(serving)
        body = decode(await read_body(request, serving.max_body_bytes), BatchRequest)
        if body.endpoint not in ENDPOINTS:
            raise RequestError(
                f"endpoint is {body.endpoint[:80]!r}; batches run {', '.join(ENDPOINTS)}", param="endpoint"
            )
        _check_metadata(body.metadata)
        await find(serving.need_state(), tenant, body.input_file_id, "input_file_id")
        now = int(time.time())
        batch = Batch(
            id=f"batch_{secrets.token_hex(12)}",
            endpoint=body.endpoint,
            input_file_id=body.input_file_id,
            completion_window=body.completion_window,
            created_at=now,
            expires_at=now + _seconds(body.completion_window),
            metadata=body.metadata,
            tenant=tenant,
        )
        await work.add(batch)
        return json_response(shape(batch))

    @router.get("/v1/batches")
    async def listing(request: Request) -> Response:
        tenant, work = serving.owner(request), _work(serving)
        query = read_query(request, ("limit", "after"), ignored_by(request, strict=serving.strict))
        bodies = await asyncio.to_thread(serving.need_state().batches, tenant)
        found = [msgspec.json.decode(body, type=Batch) for body in bodies]
        return json_response(page([shape(work.present(batch.id) or batch) for batch in found], query))

    @router.get("/v1/batches/{batch_id}")
    async def one(request: Request, batch_id: str) -> Response:
        return json_response(shape(await _find(serving, serving.owner(request), batch_id)))

    @router.post("/v1/batches/{batch_id}/cancel")
    async def cancel(request: Request, batch_id: str) -> Response:
        batch = await _find(serving, serving.owner(request), batch_id)
        cancelled = await _work(serving).cancel(batch.id)
        if cancelled is None:
            raise RequestError(f"{batch.id} is {batch.status}; there is nothing left to cancel", status=409)
        return json_response(shape(cancelled))

    return router


def shape(batch: Batch) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(batch)
    del fields["tenant"]
    return fields


def _work(serving: Serving) -> BatchWork:
    serving.need_state()
    assert serving.batches is not None
    return serving.batches


async def _find(serving: Serving, tenant: str, batch_id: str) -> Batch:
    work = _work(serving)
    body = await asyncio.to_thread(serving.need_state().batch, tenant, batch_id)
    if body is None:
        raise RequestError(f"there is no batch {batch_id[:80]!r}", status=404, code="not_found")
    return work.present(batch_id) or msgspec.json.decode(body, type=Batch)


def _seconds(window: str) -> int:
    match = _WINDOW.fullmatch(window)
    if match is None:
        raise RequestError(
            f"completion_window is {window[:40]!r}; it takes hours or days, as '24h' or '7d'", param="completion_window"
        )
    return int(match[1]) * (3600 if match[2] == "h" else 86400)


def _check_metadata(metadata: dict[str, str] | None) -> None:
    pairs = (metadata or {}).items()
    if len(pairs) > _MAX_METADATA or any(len(key) > 64 or len(value) > 512 for key, value in pairs):
        raise RequestError(
            f"metadata takes up to {_MAX_METADATA} pairs, keys of up to 64 and values of up to 512 characters",
            param="metadata",
        )
