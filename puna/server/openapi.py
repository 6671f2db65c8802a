"""`/openapi.json`: a description of this server that is made from what decides: the routes, and the bodies' structs.

It knows which struct belongs to which path; everything else about a path comes from the application itself, so that a
path cannot be described that is not there, nor left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.routing import APIRoute

import puna
from puna.server.admin import Reloaded, TenantList
from puna.server.answers import ChatCompletion, Completion
from puna.server.errors import ErrorBody
from puna.server.messages.request import Asked, MessagesRequest
from puna.server.requests import ChatRequest, CompletionRequest
from puna.server.responses.request import ResponsesRequest
from puna.server.tokens import DetokenizeRequest, TokenizeRequest

_BODIES: dict[str, Any] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/responses/input_tokens": ResponsesRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": Asked,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
_ANSWERS: dict[str, Any] = {
    "/v1/chat/completions": ChatCompletion,
    "/v1/completions": Completion,
    "/admin/tenants": TenantList,
    "/admin/reload": Reloaded,
}
_REF = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"{(\w+)(?::\w+)?}")
_FAILURES = {
    "4XX": "The request is refused; the body says what is wrong, and where.",
    "429": "A limit is reached or the queue is full; Retry-After says when to come back.",
    "503": "The server goes down, or has no engine; Retry-After says when to come back.",
    "504": "The request's deadline passed before there was anything to answer with.",
}


def openapi(app: FastAPI) -> dict[str, Any]:
    """The document, of OpenAPI 3.1."""
    kinds = list(dict.fromkeys([*_BODIES.values(), *_ANSWERS.values(), ErrorBody]))
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    by_kind = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes_of(app.routes):
        path = _PARAMETER.sub(r"{\1}", route.path)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(path, {})[method.lower()] = _operation(route, path, by_kind)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Puna", "version": puna.__version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def routes_of(routes: Iterable[Any]) -> Iterator[APIRoute]:
    """Those of included routers, too: FastAPI keeps them whole, with their prefix in each path."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        else:
            yield from routes_of(getattr(getattr(route, "original_router", None), "routes", ()))


def _operation(route: APIRoute, path: str, by_kind: dict[Any, Any]) -> dict[str, Any]:
    answer = by_kind[_ANSWERS[path]] if path in _ANSWERS else {}
    is_stream = path in _BODIES and "stream" in getattr(_BODIES[path], "__struct_fields__", ())
    good: dict[str, Any] = {"*/*": {}}
    if path in _ANSWERS or path in _BODIES:
        good = {"application/json": {"schema": answer}, **({"text/event-stream": {}} if is_stream else {})}
    # Errors under /v1/messages have another shape.
    failed = {} if path.startswith("/v1/messages") else by_kind[ErrorBody]
    operation: dict[str, Any] = {
        "operationId": f"{route.name}_{path.strip('/').replace('/', '_') or 'root'}",
        "responses": {
            "200": {"description": "As asked.", "content": good},
            **{
                status: {"description": text, "content": {"application/json": {"schema": failed}}}
                for status, text in _FAILURES.items()
            },
        },
    }
    if path in ("/health", "/ready"):
        operation["responses"]["503"]["content"] = {"application/json": {}}
    names = _PARAMETER.findall(route.path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if path in _BODIES:
        content = {"application/json": {"schema": by_kind[_BODIES[path]]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation
