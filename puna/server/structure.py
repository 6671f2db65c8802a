"""What form an answer has to take, in the many ways in which clients say it: OpenAI's, vLLM's and llama.cpp's fields.

Each becomes one `StructuredOutputs`, which remembers what its field is called. A schema is enforced whether it is
called strict or not. Knows names and shapes of the wire; what compiles is found out by the engine.
"""

from __future__ import annotations

from typing import Any

import msgspec

from puna.engine.structure import StructuredOutputs
from puna.server.errors import RequestError


class JsonSchemaFormat(msgspec.Struct, frozen=True, omit_defaults=True):
    """OpenAI's. Name and description are for the model, and Puna shows it neither."""

    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | bool | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """`response_format` of chats and completions. `schema` beside json_object is llama.cpp's."""

    type: str
    json_schema: JsonSchemaFormat | None = None
    schema: dict[str, Any] | bool | None = None


class TextFormat(JsonSchemaFormat, frozen=True, kw_only=True, omit_defaults=True):
    """`text.format` of responses, and `output_config.format` of messages."""

    type: str


class FormFields(msgspec.Struct, frozen=True):
    """vLLM's `structured_outputs`, and our `any_whitespace`."""

    json: Any = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    any_whitespace: bool | None = None
    disable_any_whitespace: bool | None = None  # which is so anyway
    whitespace_pattern: Any = None
    structural_tag: Any = None


class Guided(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that any request which draws tokens may have."""

    structured_outputs: FormFields | None = None
    guided_json: dict[str, Any] | bool | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | bool | str | None = None


def form_of(body: Guided, **formats: ResponseFormat | TextFormat | None) -> StructuredOutputs | None:
    """The form that the body asks for, if any; `formats` by the names of their fields, with _ for the dot. RequestError
    where two fields ask, or one asks for what there is not; InputError where a value cannot be."""
    found: dict[str, dict[str, Any]] = {}
    for field, given in formats.items():
        name = field.replace("__", ".")
        if given is not None and (form := _of_format(name, given)) is not None:
            found[name] = form
    if body.structured_outputs is not None:
        found["structured_outputs"] = _of_fields(body.structured_outputs)
    for name, kind in _GUIDED.items():
        value = getattr(body, name)
        if value is not None and value != "":
            found[name] = {kind: value}
    if len(found) > 1:
        first, second, *_ = found
        raise RequestError(f"{first} and {second} both say what form the answer takes; give one", param=second)
    for name, form in found.items():
        return StructuredOutputs(**form, named=name)
    return None


_GUIDED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "grammar": "grammar",
    "json_schema": "json",
}


def _of_format(name: str, given: ResponseFormat | TextFormat) -> dict[str, Any] | None:
    if given.type == "text":
        return None
    if given.type == "json_object":
        return {"json_object": True} if given.schema is None else {"json": given.schema}
    if given.type == "json_schema":
        described = given.json_schema if isinstance(given, ResponseFormat) else given
        schema = None if described is None else described.schema
        if schema is None:
            where = f"{name}.json_schema.schema" if isinstance(given, ResponseFormat) else f"{name}.schema"
            raise RequestError(f"{where} is missing: the schema that the answer has to follow", param=where)
        return {"json": schema}
    raise RequestError(
        f"{name}.type is {given.type[:40]!r}; allowed: text, json_object, json_schema",
        param=name,
        code="unsupported_parameter",
    )


def _of_fields(given: FormFields) -> dict[str, Any]:
    for name in ("whitespace_pattern", "structural_tag"):
        if getattr(given, name) is not None:
            raise RequestError(
                f"structured_outputs.{name} is not supported by this server; leave it out"
                + (" (any_whitespace=true allows white space between tokens of JSON)" if "white" in name else ""),
                param=f"structured_outputs.{name}",
                code="unsupported_parameter",
            )
    fields = ("json", "json_object", "regex", "choice", "grammar", "any_whitespace")
    return {name: value for name in fields if (value := getattr(given, name)) is not None}
