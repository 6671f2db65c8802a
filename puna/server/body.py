"""From the bytes of an HTTP request to a typed request: content type, size, JSON, field names, types.

It knows how decoding fails and says so in words; it knows nothing of what the fields mean. Names that the type does not
have are `Ignored`'s.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import msgspec
from starlette.requests import Request

from puna.server.errors import RequestError
from puna.server.ignored import Ignored, ignored_by, unknown_names
from puna.server.patience import waiting

T = TypeVar("T")

BODY_S = 60

_WHERE = re.compile(r"(?:`key` in )?`(?P<path>\$[^`]*)`$")
_REQUIRED = re.compile(r"missing required field `(?P<name>[^`]*)`")


async def read(request: Request, kind: type[T], limit_bytes: int, *, strict: bool) -> tuple[T, Ignored]:
    """The request's body as `kind`, and the account of its names that are left out, which starts with those that `kind`
    does not have. RequestError for a body that is no such thing and, in strict mode, for a name that is not known."""
    body = await read_body(request, limit_bytes)
    value = decode(body, kind)
    ignored = ignored_by(request, strict=strict)
    with _refusals():
        unknown = unknown_names(body, kind)
    for name in unknown:
        ignored.note(name)
    return value, ignored


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The request's body, refused before it is read where its size is declared, while it is read otherwise."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(
            f"content-type is {kind[:80]!r}; send JSON with the header 'content-type: application/json'",
            status=415,
            code="unsupported_media_type",
        )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise _too_large(limit_bytes)
    body, loop = bytearray(), asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as limit:
            with waiting(loop, BODY_S, lambda: limit.reschedule(loop.time())):
                async for piece in request.stream():
                    body += piece
                    if len(body) > limit_bytes:
                        raise _too_large(limit_bytes)
    except TimeoutError:
        raise RequestError(
            f"the body did not arrive within {BODY_S} seconds; send it at once", status=408, code="request_timeout"
        ) from None
    return bytes(body)


def decode(body: bytes, kind: type[T]) -> T:
    """Decodes JSON into `kind`; RequestError names the field and what it takes."""
    with _refusals():
        return msgspec.json.decode(body, type=kind)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except RecursionError:
        raise RequestError("the body nests too deeply; flatten it") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8 (byte {error.start} of a string)") from None
    except msgspec.DecodeError as error:
        raise RequestError(f"the body is not valid JSON: {error}") from None


def _invalid(message: str) -> RequestError:
    where = _WHERE.search(message)
    path = where["path"].removeprefix("$").removeprefix(".") if where else ""
    missing = _REQUIRED.search(message)
    if missing:
        name = f"{path}.{missing['name']}" if path else missing["name"]
        return RequestError(f"{name} is missing", code="missing_required_parameter", param=name)
    wrong = message.split(" - at ")[0].replace("`", "")
    wrong = wrong[0].lower() + wrong[1:]
    return RequestError(f"{path or 'the body'}: {wrong}", code="invalid_type", param=path or None)


def _too_large(limit_bytes: int) -> RequestError:
    return RequestError(
        f"the body is larger than the limit of {limit_bytes} bytes; `puna serve --max-body-mb` sets it",
        status=413,
        code="body_too_large",
    )
