"""`/v1/responses`: asking, reading again, forgetting, and counting the tokens of an input.

It puts together what the other files here know.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

from fastapi import APIRouter
from msgspec import UNSET
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response as HttpResponse

from puna.engine.params import SamplingParams
from puna.engine.truncation import prompt_limit
from puna.server.body import read
from puna.server.conversation import Conversation, converse
from puna.server.database import Database, StateError
from puna.server.delivery import StreamedAnswer, WholeAnswer, Wire, json_response, typed_frame
from puna.server.endpoints import new_heading, truncation_header
from puna.server.errors import RequestError
from puna.server.files import newest_first
from puna.server.ignored import ignored_by, read_query
from puna.server.prompts import chat_prompt
from puna.server.responses.input_items import items_of, messages_of
from puna.server.responses.request import (
    ResponsesRequest,
    check,
    check_count,
    params_of,
    wants_logprobs,
    wishes_of,
)
from puna.server.responses.shapes import ReasoningConfig, Response, TextConfig
from puna.server.responses.store import ResponseStore, Stored
from puna.server.responses.stream import ResponseStream, answer_message, whole_response
from puna.server.serving import Serving
from puna.server.state import State
from puna.server.tenants import tenant_of

MAX_PAGE = 100
_INCLUDES = ("include", "include[]")  # there is nothing to add: what was asked for with the answer is in it

log = logging.getLogger("puna.server")


def response_routes(serving: Serving) -> APIRouter:
    router = APIRouter()
    store = _open_store(serving)

    @router.post("/v1/responses")
    async def create(request: Request) -> HttpResponse:
        owner = serving.owner(request)
        return await _create(serving, store, owner, request)

    @router.post("/v1/responses/input_tokens")
    async def input_tokens(request: Request) -> HttpResponse:
        owner = serving.owner(request)
        return await _count(serving, store, owner, request)

    @router.get("/v1/responses/{name}")
    async def retrieve(request: Request, name: str) -> HttpResponse:
        query = read_query(request, ("stream",), ignored_by(request, strict=serving.strict), _INCLUDES)
        if query.get("stream", "false") != "false":
            raise RequestError("only background responses are streamed again, and this server has none", param="stream")
        return json_response((await _found(store, serving.owner(request), name)).response)

    @router.delete("/v1/responses/{name}")
    async def delete(request: Request, name: str) -> HttpResponse:
        owner = serving.owner(request)
        await _found(store, owner, name)
        await asyncio.to_thread(store.delete, owner, name)
        return json_response({"id": name, "object": "response", "deleted": True})

    @router.get("/v1/responses/{name}/input_items")
    async def input_items(request: Request, name: str) -> HttpResponse:
        known = ("limit", "after", "order")
        query = read_query(request, known, ignored_by(request, strict=serving.strict), _INCLUDES)
        return json_response(_page(await _found(store, serving.owner(request), name), query))

    return router


async def _create(serving: Serving, store: ResponseStore, owner: str, request: Request) -> HttpResponse:
    body, ignored = await read(request, ResponsesRequest, serving.max_body_bytes, strict=serving.strict)
    serving.check_model(body.model)
    check(body, ignored)
    if body.store and not store.max_bytes:
        raise RequestError("this server stores no responses (--store-mb 0); send store=false", param="store")
    earlier = await _earlier(store, owner, body)
    messages = earlier + messages_of(body.input, ignored)
    params = params_of(body)
    heading = new_heading(serving, "resp_")
    wishes = wishes_of(body, serving.speech, ignored)
    talk = await converse(serving, request, body, heading, _instructed(body, messages), params, ignored, wishes=wishes)
    is_stored = body.store is not False and store.max_bytes > 0

    async def done(whole: Response) -> Response:
        if not is_stored:
            return whole
        stored = Stored(whole, [*messages, answer_message(whole.output)], len(earlier))
        return whole if await _is_kept(store, owner, stored) else replace(whole, store=False)

    opening = _opening(body, params, talk, is_stored)
    stream = ResponseStream(talk, opening, serving.tokenizer, done)
    wire = Wire(serving.dialect.error, error_event=stream.failed, frame=typed_frame, end=b"")
    headers = truncation_header([talk.prompt])
    if body.stream:
        return StreamedAnswer(stream.events(), headers, wire)
    return WholeAnswer(stream.events(), whole_response, headers, wire)


async def _count(serving: Serving, store: ResponseStore, owner: str, request: Request) -> HttpResponse:
    body, ignored = await read(request, ResponsesRequest, serving.max_body_bytes, strict=serving.strict)
    serving.check_model(body.model)
    check_count(body, ignored)
    params = params_of(body)
    context = tenant_of(request).context_tokens(serving.context_tokens)
    messages = _instructed(body, await _earlier(store, owner, body) + messages_of(body.input, ignored))
    wishes = wishes_of(body, serving.speech, ignored)

    def count() -> int:
        limit = prompt_limit(params, context)
        prompt = chat_prompt(serving.tokenizer, serving.speech, messages, sys.maxsize, limit, ignored, wishes)
        return len(prompt.token_ids)

    return json_response({"object": "response.input_tokens", "input_tokens": await asyncio.to_thread(count)})


def _open_store(serving: Serving) -> ResponseStore:
    """In memory where the server has no folder to keep anything in."""
    database = serving.state.database if isinstance(serving.state, State) else Database(None)
    return ResponseStore(database, serving.store_bytes)


async def _is_kept(store: ResponseStore, owner: str, stored: Stored) -> bool:
    """A response that is too large to store, or for which the disk has no room, is answered all the same."""
    try:
        return await asyncio.to_thread(store.put, owner, stored)
    except StateError as error:
        log.error("a response was not stored: %s", error)
        return False


async def _earlier(store: ResponseStore, owner: str, body: ResponsesRequest) -> list[dict[str, Any]]:
    name = body.previous_response_id
    if name is None:
        return []
    stored = await asyncio.to_thread(store.get, owner, name)
    if stored is None:
        ended = "" if store.outlives else " or ended with the server before this one,"
        raise RequestError(
            f"there is no stored response {name[:80]!r}; it was not stored (store=false), was deleted,{ended} or gave "
            "way to newer ones; send the whole conversation as input",
            code="previous_response_not_found",
            param="previous_response_id",
        )
    return stored.conversation


def _instructed(body: ResponsesRequest, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Instructions are for one response; they are not part of what the next one goes on from."""
    if body.instructions is None:
        return messages
    return [{"role": "system", "content": body.instructions}, *messages]


def _opening(body: ResponsesRequest, params: SamplingParams, talk: Conversation, is_stored: bool) -> Response:
    return Response(
        id=talk.heading.id,
        created_at=talk.heading.created,
        status="in_progress",
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        model=talk.heading.model,
        output=[],
        previous_response_id=body.previous_response_id,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        reasoning=ReasoningConfig(body.reasoning.effort if body.reasoning else None),
        tool_choice="auto" if body.tool_choice is None else body.tool_choice,
        tools=body.tools or [],
        store=is_stored,
        temperature=params.temperature,
        text=TextConfig(body.text.format) if body.text and body.text.format else TextConfig(),
        top_logprobs=body.top_logprobs or 0 if wants_logprobs(body) else 0,
        top_p=params.top_p,
        truncation=body.truncation or "disabled",
        user=body.user,
        metadata=body.metadata or {},
        system_fingerprint=talk.heading.fingerprint,
        truncated_tokens=talk.prompt.truncated_tokens or UNSET,
    )


async def _found(store: ResponseStore, owner: str, name: str) -> Stored:
    stored = await asyncio.to_thread(store.get, owner, name)
    if stored is None:
        raise RequestError(f"there is no stored response {name[:80]!r}", status=404, param="response_id")
    return stored


def _page(stored: Stored, query: dict[str, str]) -> dict[str, Any]:
    """The request's own input as items, the newest first unless `order` says otherwise."""
    name = stored.response.id.removeprefix("resp_")
    items = [item for n, message in enumerate(stored.input) for item in items_of(message, f"{name}_{n}")]
    if newest_first(query):
        items.reverse()
    limit = query.get("limit", "20")
    if not limit.isdecimal() or not 1 <= int(limit[:10]) <= MAX_PAGE:
        raise RequestError(f"limit is {limit[:40]!r}; allowed: 1 to {MAX_PAGE}", param="limit")
    names = [item["id"] for item in items]
    after = query.get("after")
    if after is not None and after not in names:
        raise RequestError(f"after is {after[:80]!r}, which is not in the list", param="after")
    start = 0 if after is None else names.index(after) + 1
    page = items[start : start + int(limit)]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": start + len(page) < len(items),
    }
