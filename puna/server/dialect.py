"""Where servers of the same API contradict each other: the body of an error, and the edges of a chat stream.

OpenAI's way is the default. Clients and test suites that were written against vLLM's or llama.cpp's server can have
theirs. It knows shapes only; parameters and their meaning are the same in every dialect.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from puna.server.errors import ErrorShape, HttpFailure, openai_error

_VLLM_TYPES = {
    400: "BadRequestError",
    404: "NotFoundError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}
_LLAMACPP_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    500: "server_error",
    503: "unavailable_error",
}


@dataclass(frozen=True)
class Dialect:
    """`finish_with_text`: the last text of a chat's choice and its finish_reason come in one chunk. `null_opening`: the
    first chunk, with the role, has null for content instead of "". `content_field`: /tokenize and /detokenize call the
    text `content`."""

    name: str
    error: ErrorShape
    finish_with_text: bool = False
    null_opening: bool = False
    content_field: bool = False


def _vllm_error(failure: HttpFailure) -> dict[str, Any]:
    """The code is the status; the type is the name of a class or, where there is none, the status in words."""
    kind = _VLLM_TYPES.get(failure.status, HTTPStatus(failure.status).phrase)
    return {"error": {"message": failure.message, "type": kind, "param": failure.param, "code": failure.status}}


def _llamacpp_error(failure: HttpFailure) -> dict[str, Any]:
    kind = _LLAMACPP_TYPES.get(failure.status, "invalid_request_error" if failure.status < 500 else "server_error")
    if failure.code == "context_length_exceeded":
        kind = "exceed_context_size_error"
    return {"error": {"code": failure.status, "message": failure.message, "type": kind}}


DIALECTS = {
    dialect.name: dialect
    for dialect in (
        Dialect("openai", openai_error),
        Dialect("vllm", _vllm_error, finish_with_text=True),
        Dialect("llamacpp", _llamacpp_error, null_opening=True, content_field=True),
    )
}
