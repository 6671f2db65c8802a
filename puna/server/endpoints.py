"""What each `/v1` path does: check, prepare, ask the engine, hand the chunks to the delivery.

Preparing (templates, tokenizing) runs in a thread, so that one long prompt does not hold up other clients' streams.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from puna.engine.params import EngineRequest, SamplingParams
from puna.engine.request import make_request
from puna.engine.truncation import prompt_limit
from puna.server.body import read
from puna.server.chat import ChatShape, chat_chunks, whole_chat
from puna.server.completions import CompletionShape, completion_chunks, whole_completion
from puna.server.deadline import deadline_of
from puna.server.delivery import StreamedAnswer, WholeAnswer, Wire
from puna.server.deltas import Heading, UsageCount, answer
from puna.server.limits import Tenant
from puna.server.parts import AnswerParts
from puna.server.prompts import Prompt, chat_prompt, check_context, completion_prompts
from puna.server.requests import ChatRequest, Common, CompletionRequest, Drawing, refuse_unsupported
from puna.server.sampling import chat_params, check_token_ids, completion_params, only_echo
from puna.server.serving import Serving
from puna.server.tenants import tenant_of
from puna.server.turn import formed
from puna.server.wishes import chat_wishes

TRUNCATED_HEADER = "puna-truncated-tokens"


async def chat_completions(serving: Serving, request: Request) -> Response:
    body, ignored = await read(request, ChatRequest, serving.max_body_bytes, strict=serving.strict)
    until = deadline_of(request, body.deadline_s)
    serving.check_model(body.model)
    refuse_unsupported(body)
    tenant = tenant_of(request)
    params = chat_params(body)
    wishes = chat_wishes(serving.speech, body, ignored)
    heading = new_heading(serving, "chatcmpl-")

    def prepare() -> tuple[Prompt, AnswerParts | None, list[EngineRequest]]:
        context = tenant.context_tokens(serving.context_tokens)
        limit = prompt_limit(params, context)
        prompt = chat_prompt(serving.tokenizer, serving.speech, body.messages, context, limit, ignored, wishes)
        wanted, parts = formed(serving.speech, serving.tokenizer, wishes.tools, params, prompt.text)
        return prompt, parts, engine_requests(serving, tenant, heading, body, [prompt], wanted)

    prompt, parts, requests = await asyncio.to_thread(prepare)
    count = UsageCount(len(prompt.token_ids), samples=params.n)
    include_usage, continuous = _usage_wanted(body)
    shape = ChatShape(
        dialect=serving.dialect,
        logprobs=bool(body.logprobs),
        prompt_logprobs=body.prompt_logprobs is not None,
        token_ids=bool(body.return_token_ids),
        include_usage=include_usage,
        continuous_usage=continuous,
        old_functions=bool(body.functions),
    )
    shown = frozenset() if parts is None else parts.shown_tokens
    deltas = answer(serving.client, serving.tokenizer, requests, tenant, until, shown)
    chunks = chat_chunks(heading, prompt, deltas, count, serving.tokenizer, shape, parts)
    wire, headers = Wire(serving.dialect.error), truncation_header([prompt])
    if body.stream:
        return StreamedAnswer(chunks, headers, wire)
    return WholeAnswer(chunks, functools.partial(whole_chat, count=count), headers, wire)


async def completions(serving: Serving, request: Request) -> Response:
    body, _ = await read(request, CompletionRequest, serving.max_body_bytes, strict=serving.strict)
    until = deadline_of(request, body.deadline_s)
    serving.check_model(body.model)
    refuse_unsupported(body)
    tenant = tenant_of(request)
    params = completion_params(body)
    heading = new_heading(serving, "cmpl-")

    def prepare() -> tuple[list[Prompt], list[EngineRequest]]:
        context = tenant.context_tokens(serving.context_tokens)
        prompts = completion_prompts(serving.tokenizer, body.prompt, context, prompt_limit(params, context))
        return prompts, engine_requests(serving, tenant, heading, body, prompts, params)

    prompts, requests = await asyncio.to_thread(prepare)
    count = UsageCount(sum(len(prompt.token_ids) for prompt in prompts), samples=params.n)
    include_usage, continuous = _usage_wanted(body)
    shape = CompletionShape(
        echo=bool(body.echo),
        only_echo=only_echo(body),
        logprobs=body.logprobs,
        prompt_logprobs=body.prompt_logprobs,
        token_ids=bool(body.return_token_ids),
        include_usage=include_usage,
        continuous_usage=continuous,
    )
    deltas = answer(serving.client, serving.tokenizer, requests, tenant, until)
    chunks = completion_chunks(heading, prompts, params.n, deltas, count, serving.tokenizer, shape)
    wire, headers = Wire(serving.dialect.error), truncation_header(prompts)
    if body.stream:
        return StreamedAnswer(chunks, headers, wire)
    return WholeAnswer(chunks, functools.partial(whole_completion, count=count), headers, wire)


def model_card(serving: Serving) -> dict[str, Any]:
    return {
        "id": serving.name,
        "object": "model",
        "created": serving.created,
        "owned_by": "puna",
        "max_model_len": serving.context_tokens,
    }


def new_heading(serving: Serving, prefix: str) -> Heading:
    return Heading(f"{prefix}{secrets.token_hex(12)}", int(time.time()), serving.name, serving.fingerprint)


def truncation_header(prompts: list[Prompt]) -> dict[str, str]:
    """A header that says how many tokens were cut off the prompts, where any were."""
    cut = sum(prompt.truncated_tokens for prompt in prompts)
    return {TRUNCATED_HEADER: str(cut)} if cut else {}


def _usage_wanted(body: Common) -> tuple[bool, bool]:
    options = body.stream_options
    if options is None:
        return False, False
    return bool(options.include_usage or options.continuous_usage_stats), bool(options.continuous_usage_stats)


def engine_requests(
    serving: Serving, tenant: Tenant, heading: Heading, body: Drawing, prompts: list[Prompt], params: SamplingParams
) -> list[EngineRequest]:
    """One a prompt, after all that can be checked here was checked."""
    context = tenant.context_tokens(serving.context_tokens)
    check_context(prompts, params.max_tokens, context)
    check_token_ids(params, serving.tokenizer.vocab_size)
    serving.check_priority(body.priority)
    return [
        make_request(
            serving.tokenizer,
            f"{heading.id}-{index}",
            prompt.token_ids,
            _bounded(params, context - len(prompt.token_ids)) if context < serving.context_tokens else params,
            priority=body.priority or 0,
            cache_salt=tenant.cache_salt(body.cache_salt or ""),
            tenant=tenant.name,
        )
        for index, prompt in enumerate(prompts)
    ]


def _bounded(params: SamplingParams, most: int) -> SamplingParams:
    """An answer without a length of its own ends where the tenant's context does, not at the model's."""
    return params if params.max_tokens is not None else msgspec.structs.replace(params, max_tokens=most)
