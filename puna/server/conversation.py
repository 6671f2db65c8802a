"""From a conversation to the deltas of its answer: what chat completions, responses and messages have in common.

It knows the way from messages to the engine; it knows none of the shapes that clients see.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace
from starlette.requests import Request

from puna.engine.params import SamplingParams
from puna.engine.truncation import prompt_limit
from puna.server.deadline import deadline_of
from puna.server.deltas import Delta, Heading, UsageCount, answer
from puna.server.endpoints import engine_requests
from puna.server.ignored import Ignored
from puna.server.parts import AnswerParts
from puna.server.prompts import PLAIN_WISHES, Prompt, chat_prompt
from puna.server.requests import Drawing
from puna.server.serving import Serving
from puna.server.tenants import tenant_of
from puna.server.turn import Wishes, formed


@dataclass(frozen=True)
class Conversation:
    """What was asked, and its answer to come. Closing `deltas` ends the work for it."""

    heading: Heading
    prompt: Prompt
    params: SamplingParams
    count: UsageCount
    deltas: AsyncGenerator[Delta]
    parts: AnswerParts | None = None  # where an answer may be more than content


async def converse(
    serving: Serving,
    request: Request,
    body: Drawing,
    heading: Heading,
    messages: list[dict[str, Any]],
    params: SamplingParams,
    ignored: Ignored,
    *,
    wishes: Wishes = PLAIN_WISHES,
    fill_context: bool = False,
) -> Conversation:
    """Nothing is asked of the engine before the first delta is. RequestError, InputError where the request is wrong.

    `fill_context`: where `max_tokens` is more than the context has room for, it means as many as there is room for.
    """
    until = deadline_of(request, body.deadline_s)
    tenant = tenant_of(request)
    context = tenant.context_tokens(serving.context_tokens)

    def prepare() -> Conversation:
        limit = prompt_limit(params, context)
        prompt = chat_prompt(serving.tokenizer, serving.speech, messages, context, limit, ignored, wishes)
        wanted, parts = formed(serving.speech, serving.tokenizer, wishes.tools, params, prompt.text)
        if fill_context and params.max_tokens is not None:
            room = max(1, context - len(prompt.token_ids))
            wanted = wanted if params.max_tokens <= room else replace(wanted, max_tokens=room)
        requests = engine_requests(serving, tenant, heading, body, [prompt], wanted)
        count = UsageCount(len(prompt.token_ids), samples=wanted.n)
        shown = frozenset() if parts is None else parts.shown_tokens
        deltas = answer(serving.client, serving.tokenizer, requests, tenant, until, shown)
        return Conversation(heading, prompt, wanted, count, deltas, parts)

    return await asyncio.to_thread(prepare)
