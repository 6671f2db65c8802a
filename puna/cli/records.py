"""What `puna generate` reads and writes: one prompt a line in, one JSON object a line out.

A line in is a prompt or, in JSONL, an object with `prompt`, `messages` or `prompt_token_ids`, maybe an `id`, and
sampling parameters that replace those of the command line. A line that cannot be read is an error of that line alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import msgspec

from puna.engine.params import SamplingParams
from puna.errors import InputError

if TYPE_CHECKING:
    from puna.cli.local import LocalModel
    from puna.engine.prompts import Prompt

_PROMPT_FIELDS = ("prompt", "messages", "prompt_token_ids")
MAX_LINE_BYTES = 16 << 20


@dataclass(frozen=True)
class Line:
    """One line of input. `number` counts from 1; `id` is the caller's or the number. `text` is the prompt as the line
    has it, None where it is no text."""

    number: int
    id: Any
    text: str | None
    prompt: Prompt
    params: SamplingParams


@dataclass(frozen=True)
class BadLine:
    number: int
    id: Any
    error: str


class Sample(msgspec.Struct, frozen=True, omit_defaults=True):
    index: int
    text: str
    token_ids: list[int]
    finish_reason: str
    seed: int | None = None  # where it was drawn
    score: float | None = None  # where it was chosen among others


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of output: either outputs or an error."""

    id: Any
    line: int
    prompt: str | None = None
    outputs: list[Sample] | None = None
    prompt_tokens: int | None = None
    truncated_tokens: int = 0  # cut off the prompt beside those
    cached_tokens: int | None = None
    error: str | None = None


def text_lines(
    local: LocalModel, prompts: Iterable[tuple[int, str]], params: SamplingParams
) -> Iterator[Line | BadLine]:
    """`prompts`: line numbers and what stands there."""
    for number, prompt in prompts:
        try:
            yield Line(number, number, prompt, local.text_prompt(prompt, params), params)
        except InputError as error:
            yield BadLine(number, number, f"line {number}: {error}")


def json_lines(local: LocalModel, file: IO[bytes], params: SamplingParams) -> Iterator[Line | BadLine]:
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(MAX_LINE_BYTES)
            yield BadLine(number, number, f"line {number}: longer than {MAX_LINE_BYTES} bytes")
        elif raw.strip():
            yield _json_line(local, number, raw, params)


def _json_line(local: LocalModel, number: int, raw: bytes, params: SamplingParams) -> Line | BadLine:
    given_id: Any = number
    try:
        record = msgspec.json.decode(raw)
        if not isinstance(record, dict):
            raise InputError("takes a JSON object")
        given_id = record.pop("id", number)
        name, value = _given_prompt(record)
        wanted = _params(record, params)
        return Line(number, given_id, value if name == "prompt" else None, _prompt(local, name, value, wanted), wanted)
    except (InputError, ValueError, RecursionError) as error:
        return BadLine(number, given_id, f"line {number}: {error}")


def _given_prompt(record: dict[str, Any]) -> tuple[str, Any]:
    """Taken out of the record, with the name of its field."""
    given = [name for name in _PROMPT_FIELDS if name in record]
    if len(given) != 1:
        raise InputError(f"takes exactly one of {', '.join(_PROMPT_FIELDS)}; found {', '.join(given) or 'none'}")
    return given[0], record.pop(given[0])


def _prompt(local: LocalModel, name: str, value: Any, params: SamplingParams) -> Prompt:
    if name == "prompt":
        if not isinstance(value, str) or not value:
            raise InputError("prompt takes a text that is not empty")
        return local.text_prompt(value, params)
    if name == "messages":
        return local.chat_prompt(value, params)
    try:
        return local.ids_prompt(msgspec.convert(value, list[int]), params)
    except msgspec.ValidationError as error:
        raise InputError(f"prompt_token_ids: {error}") from None


def _params(record: dict[str, Any], params: SamplingParams) -> SamplingParams:
    for name in ("logprobs", "prompt_logprobs"):
        if record.get(name) is not None:
            raise InputError(
                f"{name}: records have no log-probabilities; leave it out, or ask `puna serve` or puna.LLM"
            )
    for name in record:
        if name not in SamplingParams.__struct_fields__:
            raise InputError(f"{name[:80]!r} is neither a prompt, an id nor a sampling parameter")
    kinds = {f.name: f.type for f in msgspec.structs.fields(SamplingParams)}
    given = {}
    for name, value in record.items():
        try:
            given[name] = msgspec.convert(value, kinds[name], str_keys=True)
        except msgspec.ValidationError as error:
            raise InputError(f"{name}: {error}") from None
    return msgspec.structs.replace(params, **given)
