"""The HTTP application: which path leads where, and how an error that nobody caught is answered.

It knows paths and methods; what they do is in endpoints.py.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

import puna
from puna.errors import PunaError
from puna.server.admin import admin_routes
from puna.server.batches import batch_routes
from puna.server.cors import Cors
from puna.server.delivery import error_response, json_response
from puna.server.door import Door
from puna.server.endpoints import chat_completions, completions, model_card
from puna.server.errors import ErrorShape, RequestError
from puna.server.files import file_routes
from puna.server.health import health_response, ready_response
from puna.server.ignored import IgnoredNames
from puna.server.messages.routes import PATH as MESSAGES_PATH
from puna.server.messages.routes import message_routes
from puna.server.messages.shapes import anthropic_error
from puna.server.metrics import metrics_routes
from puna.server.openapi import openapi, routes_of
from puna.server.responses.routes import response_routes
from puna.server.serving import Serving
from puna.server.tokens import token_routes


def make_app(serving: Serving, cors_origins: tuple[str, ...] = ()) -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await chat_completions(serving, request)

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        return await completions(serving, request)

    @app.get("/v1/models")
    async def models() -> Response:
        return json_response({"object": "list", "data": [model_card(serving)]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        serving.check_model(name)
        return json_response(model_card(serving))

    @app.get("/health")
    async def health() -> Response:
        return health_response(serving)

    @app.get("/ready")
    async def ready() -> Response:
        return ready_response(serving)

    @app.get("/version")
    async def version() -> Response:
        return json_response({"version": puna.__version__})

    @app.get("/openapi.json")
    async def document() -> Response:
        return json_response(openapi(app))

    app.include_router(token_routes(serving))
    app.include_router(metrics_routes(serving))
    app.include_router(response_routes(serving))
    app.include_router(message_routes(serving))
    app.include_router(file_routes(serving))
    app.include_router(batch_routes(serving))
    app.include_router(admin_routes(serving))
    _allow_head(app)

    def shape(request: Request) -> ErrorShape:
        return anthropic_error if request.url.path.startswith(MESSAGES_PATH) else serving.dialect.error

    async def answer_error(request: Request, error: Exception) -> Response:
        return error_response(error, shape(request))

    async def answer_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = _methods_of(app, request.url.path)
        response = error_response(_described(request, error, headers), shape(request))
        response.headers.update(headers)
        return response

    app.add_exception_handler(PunaError, answer_error)
    app.add_exception_handler(HTTPException, answer_http_exception)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_exception_handler(Exception, answer_error)
    app.add_middleware(IgnoredNames)
    app.add_middleware(Door, serving=serving, answer_error=answer_error)  # the last one added is the first that is met
    if cors_origins:
        app.add_middleware(Cors, origins=cors_origins)
    return app


def _allow_head(app: FastAPI) -> None:
    """Wherever there is GET."""
    for route in routes_of(app.routes):
        if route.methods and "GET" in route.methods:
            route.methods.add("HEAD")


def _methods_of(app: FastAPI, path: str) -> str:
    """Of all that is there; the framework names those of one."""
    found = [route.methods or set() for route in routes_of(app.routes) if route.path_regex.match(path)]
    return ", ".join(sorted(set().union(*found)))


def _described(request: Request, error: HTTPException, headers: dict[str, str]) -> RequestError:
    what = f"{request.method} {request.url.path[:200]}"
    if error.status_code == 404:
        message = (
            f"there is no {what}; this server answers /v1/chat/completions, /v1/completions, /v1/responses, "
            "/v1/messages, /v1/files, /v1/batches, /v1/models, /tokenize, /health"
        )
    elif error.status_code == 405:
        message = f"{what} is not allowed; use {headers['Allow']}"
    else:
        message = str(error.detail)
    return RequestError(message, status=error.status_code)


async def _answer_nobody(_: Request, __: Exception) -> Response:
    return Response(status_code=499)
