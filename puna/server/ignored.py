"""Names in a request, in its body or address, that nobody reads: refused in strict mode, otherwise left out and named
in a header of the answer.

`unknown_names` compares a body with the struct that it was decoded into, at any depth; parts that are checked by hand
(messages) note their own. The header is written in one place for all endpoints, `IgnoredNames`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puna.server.errors import RequestError

HEADER = "puna-ignored"
MAX_NAMES = 20
MAX_NAME_CHARS = 80
_UNSPEAKABLE = re.compile(r"[^\x21-\x2b\x2d-\x7e]")  # in a header: what is no visible ASCII, and the comma
_STATE = "puna_ignored"


class Ignored:
    """Of one request."""

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.names: list[str] = []

    def note(self, name: str, reason: str = "") -> None:
        """`reason`: why one that is known is of no use here. RequestError in strict mode."""
        if self.strict and reason:
            raise RequestError(
                f"{name[:200]} {reason}; leave it out. Without --strict it would be left out here",
                code="unused_parameter",
                param=name[:200],
            )
        if self.strict:
            raise RequestError(
                f"unknown parameter {name[:200]!r}; docs/serving.md lists those that this server takes, and without "
                "--strict it would leave out the others",
                code="unknown_parameter",
                param=name[:200],
            )
        self.names.append(name)


def ignored_by(request: HTTPConnection, *, strict: bool) -> Ignored:
    """A new account of what is ignored in `request`; `IgnoredNames` reads it when the answer begins."""
    ignored = Ignored(strict=strict)
    setattr(request.state, _STATE, ignored)
    return ignored


def header_of(names: Sequence[str]) -> str:
    """The names as a header can hold them, the first of them at least."""
    shown = [_UNSPEAKABLE.sub("?", name[:MAX_NAME_CHARS]) or "?" for name in names[:MAX_NAMES]]
    further = len(names) - len(shown)
    return ", ".join([*shown, f"and {further} more"] if further else shown)


def read_query(
    request: HTTPConnection, known: Iterable[str], ignored: Ignored, unread: Iterable[str] = ()
) -> dict[str, str]:
    """What stands behind the question mark in the address. Names that are not `known` are noted with that mark, but for
    those that may be left `unread`. RequestError for one that comes twice."""
    query: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in unread:
            continue
        if name in query:
            raise RequestError(f"{name[:80]!r} stands twice in the address; give it once", param=name[:200])
        query[name] = value
        if name not in known:
            ignored.note(f"?{name}")
    return query


class IgnoredNames:
    """Adds the header to answers of `app`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                ignored: Ignored | None = scope.get("state", {}).get(_STATE)
                if ignored is not None and ignored.names:
                    message["headers"] = [*message["headers"], (HEADER.encode(), header_of(ignored.names).encode())]
            await send(message)

        await self.app(scope, receive, send_named)


def unknown_names(body: bytes, kind: type) -> list[str]:
    """The names in a JSON document that `kind`, the struct it was decoded into, does not have: "a", "b.c", "d[0].e"."""
    return list(_unknown(msgspec.Raw(body), _type_of(kind), ""))


def _unknown(value: msgspec.Raw, expected: inspect.Type, path: str) -> Iterator[str]:
    raw = bytes(value).lstrip()
    if raw[:1] == b"{" and (struct := _alternative(expected, inspect.StructType)) is not None:
        fields = _fields_of(struct.cls)
        for name, content in msgspec.json.decode(raw, type=dict[str, msgspec.Raw]).items():
            if name not in fields:
                yield path + name
            elif (inner := fields[name]) is not None:
                yield from _unknown(content, inner, f"{path}{name}.")
    elif raw[:1] == b"[" and (array := _alternative(expected, inspect.ListType)) is not None:
        where = path.removesuffix(".")
        for index, content in enumerate(msgspec.json.decode(raw, type=list[msgspec.Raw])):
            yield from _unknown(content, array.item_type, f"{where}[{index}].")


@cache
def _type_of(kind: type) -> inspect.Type:
    """Costs more than reading a request does."""
    return inspect.type_info(kind)


@cache
def _fields_of(struct: type) -> dict[str, inspect.Type | None]:
    """Names on the wire; the type where there may be structs inside."""
    known = _type_of(struct)
    assert isinstance(known, inspect.StructType)
    return {field.encode_name: field.type if _has_struct(field.type) else None for field in known.fields}


def _has_struct(expected: inspect.Type) -> bool:
    array = _alternative(expected, inspect.ListType)
    return _alternative(expected, inspect.StructType) is not None or (
        array is not None and _has_struct(array.item_type)
    )


def _alternative(expected: inspect.Type, kind: Any) -> Any:
    """`expected`, or the one of its alternatives that is of `kind`."""
    among = expected.types if isinstance(expected, inspect.UnionType) else (expected,)
    return next((one for one in among if isinstance(one, kind)), None)
