"""From an exception to what an HTTP client sees: the one mapping.

Every `PunaError` has its status, type and code here; anything else is a bug and becomes a 500 without details. Messages
are cut to a bound, so that a request cannot have itself echoed at length. The body has OpenAI's shape; other dialects
and endpoints with shapes of their own bring another `ErrorShape`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from puna.errors import (
    CulpritError,
    EngineError,
    InputError,
    MemoryBudgetError,
    ModelFileError,
    ModelNotFoundError,
    OverloadedError,
    PunaError,
)
from puna.server.database import StateError

INVALID_HTTP = "invalid_http"
MAX_MESSAGE_CHARS = 1000
BACK_SOON_S = 2  # where nobody knows when the server can serve again
MAX_HEAD_BYTES = 32 << 10  # of a request's line and headers together


class RequestError(InputError):
    """A request that is refused with another status than 400, with a code that clients look for, or for a time only."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, param=param)
        self.status = status
        self.kind = kind
        self.code = code
        self.retry_after_s = retry_after_s


def head_too_large(limit_bytes: int) -> RequestError:
    return RequestError(
        f"the request's line and headers are larger than {limit_bytes} bytes together; shorten them",
        status=431,
        code="head_too_large",
    )


def not_http(why: str) -> RequestError:
    return RequestError(f"this is not HTTP/1.1: {why}", code=INVALID_HTTP)


class DeadlineError(PunaError):
    """The time that a client gave was over before there was anything to answer with."""


class ErrorDetail(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    error: ErrorDetail


@dataclass(frozen=True)
class HttpFailure:
    """What is said of one failed request, whatever the body's shape."""

    status: int
    message: str
    kind: str
    param: str | None
    code: str | None
    headers: dict[str, str]


ErrorShape = Callable[[HttpFailure], Any]  # the body, for msgspec


def openai_error(failure: HttpFailure) -> ErrorBody:
    return ErrorBody(ErrorDetail(failure.message, failure.kind, failure.param, failure.code))


def http_failure(error: BaseException) -> HttpFailure:
    """What a client is told of `error`."""
    status, kind, code = _classify(error)
    headers: dict[str, str] = {}
    if isinstance(error, OverloadedError | RequestError) and error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if status == 503:
        headers.setdefault("Retry-After", str(BACK_SOON_S))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status == 408 or code == INVALID_HTTP:
        headers["Connection"] = "close"  # what else arrives is no request
    if status == 504:
        headers["x-should-retry"] = "false"  # OpenAI's and Anthropic's clients would
    message = str(error) if isinstance(error, PunaError) else "The server hit a bug; its log has the traceback."
    if len(message) > MAX_MESSAGE_CHARS:
        message = message[:MAX_MESSAGE_CHARS] + " ..."
    param = error.param if isinstance(error, InputError) else None
    return HttpFailure(status, message, kind, param, code, headers)


def _classify(error: BaseException) -> tuple[int, str, str | None]:
    match error:
        case RequestError():
            return error.status, error.kind, error.code
        case MemoryBudgetError():
            return 400, "invalid_request_error", "memory_budget_exceeded"
        case InputError():
            return 400, "invalid_request_error", None
        case ModelNotFoundError():
            return 404, "invalid_request_error", "model_not_found"
        case DeadlineError():
            return 504, "timeout_error", "deadline_exceeded"
        case OverloadedError():
            return 429, "overloaded_error", "overloaded"
        case CulpritError():
            return 500, "server_error", "request_ends_engine"
        case EngineError():
            return 503, "server_error", "engine_failed"
        case StateError():
            return 503, "server_error", "storage_unavailable"
        case ModelFileError():
            return 500, "server_error", "model_file"
        case _:
            return 500, "server_error", None
