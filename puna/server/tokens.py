"""`/tokenize`, `/detokenize`, `/tokenizer_info`: what the model's tokenizer makes of text, messages and token ids.

The shapes are vLLM's. In llama.cpp's dialect the text may be called `content`, as there.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from puna.server.body import read
from puna.server.delivery import json_response
from puna.server.errors import RequestError
from puna.server.ignored import Ignored
from puna.server.prompts import conversation
from puna.server.requests import refuse_off_values
from puna.server.serving import Serving
from puna.server.wishes import chat_wishes


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`prompt` or `messages`. Unless said otherwise a text gets the special tokens that every prompt of the model has
    around it, a conversation those that its template writes."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    functions: list[Any] | None = None
    function_call: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    documents: list[dict[str, Any]] | None = None
    reasoning_effort: str | None = None
    chat_template: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    with_pieces: Any = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    tokens: list[int]
    model: str | None = None


class TokenizeAnswer(msgspec.Struct, frozen=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


_OF_MESSAGES = (
    *("add_generation_prompt", "tools", "tool_choice", "functions", "function_call", "parallel_tool_calls"),
    *("documents", "reasoning_effort", "chat_template_kwargs", "continue_final_message"),
)
OFF_VALUES: dict[str, tuple[Any, ...]] = {
    "chat_template": (None,),
    "with_pieces": (None, False),
}


def token_routes(serving: Serving) -> APIRouter:
    router = APIRouter()

    @router.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        body, ignored = await read(request, TokenizeRequest, serving.max_body_bytes, strict=serving.strict)
        serving.check_model(body.model)
        refuse_off_values(body, OFF_VALUES)
        return json_response(await asyncio.to_thread(_tokenize, serving, body, ignored))

    @router.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        body, _ = await read(request, DetokenizeRequest, serving.max_body_bytes, strict=serving.strict)
        serving.check_model(body.model)
        text = await asyncio.to_thread(_detokenize, serving, body.tokens)
        return json_response({"content" if serving.dialect.content_field else "prompt": text})

    @router.get("/tokenizer_info")
    async def tokenizer_info() -> Response:
        return json_response(_info(serving))

    return router


def _tokenize(serving: Serving, body: TokenizeRequest, ignored: Ignored) -> TokenizeAnswer:
    tokenizer = serving.tokenizer
    text = body.prompt
    if serving.dialect.content_field and text is None:
        text = body.content
    elif body.content is not None:
        ignored.note("content")
    if (text is None) == (body.messages is None):
        raise RequestError("give either prompt (a string) or messages", param="prompt")
    wanted = _adds_special(body)
    parse_special = body.parse_special is not False
    if body.messages is not None:
        wishes = chat_wishes(serving.speech, body, ignored)
        messages, render = conversation(serving.speech, body.messages, ignored, wishes)
        text = render(messages)
        ids = tokenizer.encode(text, add_special=bool(wanted), parse_special=parse_special)
    else:
        assert text is not None
        for name in _OF_MESSAGES:
            if getattr(body, name) is not None:
                ignored.note(name, "is for messages and has no effect on a text")
        ids = tokenizer.encode(text, add_special=wanted is not False, parse_special=parse_special)
    strings = [tokenizer.token_text(token) for token in ids] if body.return_token_strs else None
    return TokenizeAnswer(len(ids), serving.context_tokens, ids, strings)


def _adds_special(body: TokenizeRequest) -> bool | None:
    """vLLM's name, or llama.cpp's. RequestError where they contradict each other."""
    names = body.add_special_tokens, body.add_special
    if None not in names and names[0] != names[1]:
        said = [str(value).lower() for value in names]
        raise RequestError(
            f"add_special_tokens is {said[0]} and add_special is {said[1]}; they mean the same, give one",
            param="add_special",
        )
    return names[1] if names[0] is None else names[0]


def _info(serving: Serving) -> dict[str, Any]:
    """What tools that count or cut tokens themselves want to know; names as in a tokenizer_config.json."""
    tokenizer, template = serving.tokenizer, serving.speech.template
    bos, eos = tokenizer.bos_id, tokenizer.eos_ids
    return {
        "tokenizer_class": type(tokenizer).__name__,
        "vocab_size": tokenizer.vocab_size,
        "model_max_length": serving.context_tokens,
        "add_bos_token": tokenizer.adds_bos,
        "bos_token": None if bos is None else tokenizer.token_text(bos),
        "eos_token": tokenizer.token_text(eos[0]) if eos else None,
        "chat_template": None if template is None else template.source,
    }


def _detokenize(serving: Serving, tokens: list[int]) -> str:
    vocab = serving.tokenizer.vocab_size
    for position, token in enumerate(tokens):
        if not 0 <= token < vocab:
            raise RequestError(
                f"tokens[{position}] is {str(token)[:40]}; this model's ids are 0 to {vocab - 1}", param="tokens"
            )
    return serving.tokenizer.decode(tokens, skip_special_tokens=False)
