"""From the bytes of an HTTP request to a typed request: content type, size, JSON, field names, types.

It knows how decoding fails and says so in words; it knows nothing of what the fields mean. Names that the type does not
have are `Ignored`'s.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from puna.server.errors import RequestError
from puna.server.ignored import Ignored, ignored_by, read_query, unknown_names
from puna.server.patience import waiting

T = TypeVar("T")

BODY_S = 60
SMALL_BYTES = 64 << 10  # up to which a body is decoded without a thread

_CHARSET = re.compile(r"charset\s*=\s*\"?(?P<name>[^\s;\"]+)", re.IGNORECASE)
_WHERE = re.compile(r"(?:`key` in )?`(?P<path>\$[^`]*)`$")
_REQUIRED = re.compile(r"missing required field `(?P<name>[^`]*)`")


async def read(
    request: Request, kind: type[T], limit_bytes: int, *, strict: bool, unread_query: Iterable[str] = ()
) -> tuple[T, Ignored]:
    """The request's body as `kind`, and the account of its names that are left out, which starts with those that `kind`
    does not have. RequestError for a body that is no such thing and, in strict mode, for a name that is not known."""
    body = await read_body(request, limit_bytes)

    def decoded() -> tuple[T, list[str]]:
        value = decode(body, kind)
        with _refusals():
            return value, unknown_names(body, kind)

    value, unknown = decoded() if len(body) <= SMALL_BYTES else await asyncio.to_thread(decoded)
    ignored = ignored_by(request, strict=strict)
    read_query(request, (), ignored, unread_query)
    for name in unknown:
        ignored.note(name)
    return value, ignored


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The request's body, refused before it is read where its size is declared, while it is read otherwise."""
    kind, _, further = request.headers.get("content-type", "").partition(";")
    if kind.strip().lower() != "application/json":
        raise RequestError(
            f"content-type is {kind[:80]!r}; send JSON with the header 'content-type: application/json'",
            status=415,
            code="unsupported_media_type",
        )
    charset = _CHARSET.search(further)
    if charset is not None and charset["name"].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise RequestError(
            f"the body's charset is {charset['name'][:40]!r}; JSON is sent as UTF-8",
            status=415,
            code="unsupported_media_type",
        )
    refuse_encoded(request)
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


def refuse_encoded(request: Request) -> None:
    """RequestError for a body that is compressed: it would be misread, or be larger than any limit."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise RequestError(
            f"content-encoding is {encoding[:40]!r}; this server takes bodies as they are, so send it uncompressed",
            status=415,
            code="unsupported_content_encoding",
        )


def decode(body: bytes, kind: type[T]) -> T:
    """Decodes JSON into `kind`; RequestError names the field and what it takes, or a name that an object has twice."""
    with _refusals():
        value = msgspec.json.decode(body, type=kind)
        _LOOKING_FOR_TWINS.decode(body.decode())
        return value


def _refuse_twins(pairs: list[tuple[str, Any]]) -> None:
    """Of two values for one name decoders take the last, without a word."""
    if len({name for name, _ in pairs}) == len(pairs):
        return
    counted = Counter(name for name, _ in pairs)
    shown = counted.most_common(1)[0][0][:80].encode("utf-8", "replace").decode()
    raise RequestError(f"the body has {shown!r} twice in one object; give it once", code="repeated_name", param=shown)


_LOOKING_FOR_TWINS = json.JSONDecoder(object_pairs_hook=_refuse_twins)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except RequestError:  # which is a ValueError too
        raise
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except RecursionError:
        raise RequestError("the body nests too deeply; flatten it") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8 (byte {error.start} of a string)") from None
    except msgspec.DecodeError as error:
        raise RequestError(f"the body is not valid JSON: {error}") from None
    except ValueError as error:  # a number of thousands of digits in what nobody reads
        raise RequestError(f"the body is not valid JSON: {str(error)[:200]}") from None


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
