"""`/v1/messages` and `/v1/messages/count_tokens`: Anthropic's Messages API, for text and tools.

It puts together what the other files here know. Errors under these paths have Anthropic's shape, in every dialect.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from puna.server.body import read
from puna.server.conversation import converse
from puna.server.delivery import StreamedAnswer, WholeAnswer, Wire, json_response, typed_frame
from puna.server.endpoints import new_heading, truncation_header
from puna.server.messages.request import Asked, MessagesRequest, check, check_count, messages_of, params_of, wishes_of
from puna.server.messages.shapes import anthropic_error
from puna.server.messages.stream import message_events, whole_message
from puna.server.prompts import conversation
from puna.server.serving import Serving

PATH = "/v1/messages"
_QUERY = ("beta",)  # Anthropic's clients say so where they use names that are not settled; here all are the same
_WIRE = Wire(anthropic_error, frame=typed_frame, end=b"")


def message_routes(serving: Serving) -> APIRouter:
    router = APIRouter()

    @router.post(PATH)
    async def create(request: Request) -> Response:
        return await _create(serving, request)

    @router.post(f"{PATH}/count_tokens")
    async def count_tokens(request: Request) -> Response:
        return await _count(serving, request)

    return router


async def _create(serving: Serving, request: Request) -> Response:
    body, ignored = await read(
        request, MessagesRequest, serving.max_body_bytes, strict=serving.strict, unread_query=_QUERY
    )
    serving.check_model(body.model)
    check(body)
    params = params_of(body)
    messages, prefill = messages_of(body, ignored)
    heading = new_heading(serving, "msg_")
    wishes = wishes_of(body, serving.speech, ignored, prefill)
    talk = await converse(serving, request, body, heading, messages, params, ignored, wishes=wishes, fill_context=True)
    events, headers = message_events(talk, body.max_tokens), truncation_header([talk.prompt])
    if body.stream:
        return StreamedAnswer(events, headers, _WIRE)
    return WholeAnswer(events, whole_message, headers, _WIRE)


async def _count(serving: Serving, request: Request) -> Response:
    body, ignored = await read(request, Asked, serving.max_body_bytes, strict=serving.strict, unread_query=_QUERY)
    serving.check_model(body.model)
    check_count(body, ignored)
    messages, prefill = messages_of(body, ignored)
    wishes = wishes_of(body, serving.speech, ignored, prefill)

    def count() -> int:
        cleaned, render = conversation(serving.speech, messages, ignored, wishes)
        return len(serving.tokenizer.encode(render(cleaned), add_special=False, parse_special=True))

    return json_response({"input_tokens": await asyncio.to_thread(count)})
