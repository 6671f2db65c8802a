"""The lines of a batch: reading and checking a file of requests, running them with a bound on how many at once.

Knows OpenAI's line format and how to ask the application; it does not know where answers are kept. `puna batch` and the
server's batches run through the same functions.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from puna.server.ignored import HEADER, header_of, unknown_names
from puna.server.loopback import LoopbackAnswer

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
MAX_LINES = 50_000
MAX_LINE_BYTES = 16 << 20
MAX_ERRORS = 100  # more of them help nobody
RETRIED = (429, 503)  # the server is full or has no engine: later


class BatchLine(msgspec.Struct, frozen=True):
    """One request. `number` counts lines from 0."""

    number: int
    custom_id: str
    url: str
    body: msgspec.Raw
    ignored: list[str] = []  # its names that nobody reads


class LineError(msgspec.Struct, frozen=True):
    code: str
    message: str
    line: int | None = None
    param: str | None = None


class _Written(msgspec.Struct):
    custom_id: str
    url: str
    body: msgspec.Raw
    method: str = "POST"


def read_lines(path: Path) -> Iterator[bytes]:
    """Lines that are not blank, each with what may be read of it: one byte more than a line may have at most."""
    with path.open("rb") as opened:
        while line := opened.readline(MAX_LINE_BYTES + 1):
            if line.strip():
                yield line


def parse(path: Path, endpoint: str | None) -> Iterator[BatchLine | LineError]:
    """Every line as a request, or what is wrong with it. `endpoint`: the one that all have to name, None for any."""
    seen: set[str] = set()
    number = -1
    for number, text in enumerate(read_lines(path)):
        if number >= MAX_LINES:
            yield LineError("too_many_lines", f"a batch has at most {MAX_LINES} lines; split the file", number + 1)
            return
        parsed = _parse_line(number, text, endpoint, seen)
        yield parsed
        if isinstance(parsed, LineError) and parsed.code == "line_too_long":
            return  # where the next one begins is not known
    if number < 0:
        yield LineError("empty_file", "the file has no lines; each is one request")


def _parse_line(number: int, text: bytes, endpoint: str | None, seen: set[str]) -> BatchLine | LineError:
    def wrong(code: str, message: str, param: str | None = None) -> LineError:
        return LineError(code, message, number + 1, param)

    if len(text) > MAX_LINE_BYTES:
        return wrong("line_too_long", f"the line is longer than {MAX_LINE_BYTES} bytes")
    try:
        written = msgspec.json.decode(text, type=_Written)
        ignored = unknown_names(text, _Written)
        body = msgspec.json.decode(written.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return wrong("invalid_json_line", f"the line is no request: {error}; it needs custom_id, method, url and body")
    if not isinstance(body, dict):
        return wrong("invalid_request", "body is not a JSON object", "body")
    if written.method != "POST":
        return wrong("invalid_method", f"method is {written.method[:20]!r}; it has to be POST", "method")
    if written.url not in ENDPOINTS or (endpoint is not None and written.url != endpoint):
        wanted = endpoint or " or ".join(ENDPOINTS)
        return wrong("invalid_url", f"url is {written.url[:80]!r}; it has to be {wanted}", "url")
    if not written.custom_id or len(written.custom_id) > 512:
        return wrong("invalid_custom_id", "custom_id is empty or longer than 512 characters", "custom_id")
    if written.custom_id in seen:
        return wrong("duplicate_custom_id", f"custom_id {written.custom_id[:80]!r} was there before", "custom_id")
    if body.get("stream"):
        return wrong("invalid_request", "stream is true; a line's answer is always whole", "body.stream")
    seen.add(written.custom_id)
    return BatchLine(number, written.custom_id, written.url, written.body, ignored)


def answer_line(line: BatchLine, answer: LoopbackAnswer) -> tuple[bool, bytes]:
    """The line of the output file, and whether it is a good answer. Names that were left out are in it, as in the
    header of a single answer."""
    response: dict[str, Any] = {
        "status_code": answer.status,
        "request_id": answer.headers.get("x-request-id", f"req_{secrets.token_hex(12)}"),
        "body": msgspec.Raw(answer.body or b"null"),
    }
    of_body = answer.headers.get(HEADER)
    ignored = ([header_of(line.ignored)] if line.ignored else []) + ([of_body] if of_body else [])
    if ignored:
        response[HEADER] = ", ".join(ignored)
    return answer.status == 200, _written_answer(line.custom_id, response, None)


def missing_line(line: BatchLine, code: str, message: str) -> bytes:
    """The line of a request that was never answered."""
    return _written_answer(line.custom_id, None, {"code": code, "message": message})


def _written_answer(custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None) -> bytes:
    return msgspec.json.encode(
        {
            "id": f"batch_req_{secrets.token_hex(12)}",
            "custom_id": custom_id,
            "response": response,
            "error": error,
        }
    )


async def run_lines(
    lines: Iterable[BatchLine],
    ask: Callable[[str, bytes], Awaitable[LoopbackAnswer]],
    done: Callable[[BatchLine, LoopbackAnswer], Awaitable[None]],
    *,
    at_once: int,
) -> None:
    """Asks all `lines`, `at_once` at a time, and hands each answer to `done`. Waits where the server is full.

    What `done` raises ends it all, and is raised. Cancelling ends what runs; those lines were not done.
    """
    waiting = iter(lines)

    async def work() -> None:
        for line in waiting:  # the workers share it: each line goes to one of them
            while True:
                answer = await ask(line.url, bytes(line.body))
                if answer.status not in RETRIED:
                    break
                await asyncio.sleep(_seconds(answer.headers.get("retry-after")))
            await done(line, answer)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(work())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


def _seconds(retry_after: str | None) -> float:
    return min(30.0, max(0.5, float(retry_after))) if retry_after and retry_after.isdecimal() else 1.0
