"""`/v1/files`: uploads that batches read, and the files that batches write.

Knows OpenAI's shapes of files; bytes and rows are state.py's.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import Message

from puna.server.body import refuse_encoded
from puna.server.database import StateError
from puna.server.delivery import json_response
from puna.server.errors import RequestError
from puna.server.ignored import Ignored, ignored_by, read_query
from puna.server.serving import Serving
from puna.server.state import State, StoredFile, check_name

PURPOSES = ("batch",)
_PIECE = 1 << 20
_SPARE_BYTES = 256 << 20  # of the disk, that stay free


def file_routes(serving: Serving) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/files")
    async def upload(request: Request) -> Response:
        tenant = serving.owner(request)
        state = serving.need_state()
        form = await _form(request, serving.max_file_bytes, state)
        try:
            _check_form(form, ignored_by(request, strict=serving.strict))
            purpose, upload = form.get("purpose"), form.get("file")
            if purpose not in PURPOSES:
                raise RequestError(f"purpose is {str(purpose)[:40]!r}; this server takes 'batch'", param="purpose")
            if not isinstance(upload, UploadFile):
                raise RequestError("there is no file in the form; send it as the part named 'file'", param="file")
            stored = await asyncio.to_thread(_store, state, tenant, upload, str(purpose))
        finally:
            await form.close()
        return json_response(shape(stored))

    @router.get("/v1/files")
    async def listing(request: Request) -> Response:
        tenant = serving.owner(request)
        known = ("limit", "after", "order", "purpose")
        query = read_query(request, known, ignored_by(request, strict=serving.strict))
        files = await asyncio.to_thread(serving.need_state().files, tenant)
        if not newest_first(query):
            files.reverse()
        data = [shape(one) for one in files if query.get("purpose") in (None, one.purpose)]
        return json_response(page(data, query))

    @router.get("/v1/files/{file_id}")
    async def one(request: Request, file_id: str) -> Response:
        tenant = serving.owner(request)
        return json_response(shape(await find(serving.need_state(), tenant, file_id)))

    @router.get("/v1/files/{file_id}/content")
    async def content(request: Request, file_id: str) -> Response:
        tenant, state = serving.owner(request), serving.need_state()
        stored = await find(state, tenant, file_id)
        return FileResponse(state.path(stored.id), media_type="application/octet-stream")

    @router.delete("/v1/files/{file_id}")
    async def delete(request: Request, file_id: str) -> Response:
        tenant, state = serving.owner(request), serving.need_state()
        stored = await find(state, tenant, file_id)
        if serving.batches is not None and serving.batches.reads(stored.id):
            raise RequestError(f"{stored.id} is read by a batch that is not over; cancel that first", status=409)
        await asyncio.to_thread(state.delete_file, stored.id)
        return json_response({"id": stored.id, "object": "file", "deleted": True})

    return router


async def find(state: State, tenant: str, file_id: str, param: str | None = None) -> StoredFile:
    """RequestError (404) where the tenant has no such file."""
    stored = await asyncio.to_thread(state.file, tenant, file_id)
    if stored is None:
        raise RequestError(f"there is no file {file_id[:80]!r}", status=404, code="not_found", param=param)
    return stored


def shape(stored: StoredFile) -> dict[str, Any]:
    return {
        "id": stored.id,
        "object": "file",
        "bytes": stored.bytes,
        "created_at": stored.created_at,
        "expires_at": None,
        "filename": stored.filename,
        "purpose": stored.purpose,
        "status": "processed",
    }


def newest_first(query: dict[str, str]) -> bool:
    """What `order` says of a list. RequestError where it is none."""
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise RequestError(f"order is {order[:40]!r}; allowed: asc, desc", param="order")
    return order == "desc"


def page(data: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
    """OpenAI's pages: up to `limit` entries behind the one whose id is `after`."""
    text = query.get("limit", "100")
    if not (text.isdecimal() and 1 <= int(text[:9]) <= 10_000):
        raise RequestError(f"limit is {text[:40]!r}; allowed: 1 to 10000", param="limit")
    after = query.get("after")
    ids = [entry["id"] for entry in data]
    if after is not None:
        if after not in ids:
            raise RequestError(f"after is {after[:80]!r}, which is not in the list", param="after")
        data = data[ids.index(after) + 1 :]
    shown = data[: int(text)]
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
    return {"object": "list", "data": shown, "has_more": len(shown) < len(data)} | ends


async def _form(request: Request, limit_bytes: int, state: State) -> FormData:
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        raise RequestError(
            f"content-type is {kind[:80]!r}; send the file as multipart/form-data",
            status=415,
            code="unsupported_media_type",
        )
    refuse_encoded(request)
    room = min(limit_bytes, await asyncio.to_thread(state.free_bytes) - _SPARE_BYTES)
    declared = request.headers.get("content-length", "")
    received = 0

    def check(size: int) -> None:
        if size > room:
            raise RequestError(
                f"the file is larger than the {max(0, room)} bytes that this server takes now; split it",
                status=413,
                code="body_too_large",
            )

    if declared.isdecimal():
        check(int(declared))
    receive = request.receive

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        check(received)
        return message

    counting = Request(request.scope, counted)
    parser = MultiPartParser(counting.headers, counting.stream(), max_files=1, max_fields=10)
    try:
        return await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise RequestError(f"the form cannot be read: {error}") from None
    except OSError as error:  # large ones lie in a temporary file meanwhile
        raise StateError(f"the file cannot be kept: {error.strerror}") from error


def _check_form(form: FormData, ignored: Ignored) -> None:
    names = [name for name, _ in form.multi_items()]
    for name in dict.fromkeys(names):
        if name.startswith("expires_after"):
            raise RequestError(
                "expires_after is not supported by this server: files stay until they are deleted; leave it out",
                code="unsupported_parameter",
                param="expires_after",
            )
        if name not in ("purpose", "file"):
            ignored.note(name)
        elif names.count(name) > 1:
            raise RequestError(f"the form has {name!r} twice; send it once", param=name)


def _store(state: State, tenant: str, upload: UploadFile, purpose: str) -> StoredFile:
    name = check_name(upload.filename or "")
    with state.new_file(tenant, name, purpose) as (file_id, opened):
        while piece := upload.file.read(_PIECE):
            opened.write(piece)
    stored = state.file(tenant, file_id)
    assert stored is not None
    return stored
