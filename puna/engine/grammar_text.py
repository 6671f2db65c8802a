"""From the form that an answer has to take to the text of a grammar, as the grammar library takes it.

Knows the five forms, how white space is bounded and what becomes of GBNF; does not know any vocabulary, and does not
compile. Texts come from strangers: this runs in a process apart (grammar_trial.py) where a form is not plain.
"""

from __future__ import annotations

import json
from typing import Any

from puna.engine.structure import StructuredOutputs
from puna.errors import InputError

# White space between two tokens of JSON, where any is allowed: enough for a line's end and some indentation.
WHITE_SPACE = r"[\x20\x0A\x0D\x09]{1,16}"

# The library's own expressions for these formats have a 29th of February in every year, and leap seconds at any time.
_LEAP_DAY = r"([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29"
_MONTHS = r"02-(0[1-9]|1[0-9]|2[0-8])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])"
_DATE = rf"({_LEAP_DAY}|[0-9]{{4}}-({_MONTHS}))"
_TIME = "[0-9]{2}:[0-9]{2}:[0-5]"
_PATTERNS = {"date": f"^{_DATE}$", "date-time": f"^{_DATE}[Tt]{_TIME}", "time": f"^{_TIME}"}
_DATA = ("const", "enum", "default", "examples")  # keywords whose values are no schemas
_NAMES = ("properties", "patternProperties", "$defs", "definitions")  # whose values are schemas by name


def is_plain(form: StructuredOutputs) -> bool:
    """Whether its size alone bounds the work of compiling it."""
    return form.json_object or form.choice is not None


def grammar_text(form: StructuredOutputs) -> str:
    """InputError where the form cannot be a grammar for a reason that is known before it is compiled."""
    from llguidance import LLMatcher

    if form.json_object:
        return _of_schema({"type": "object"}, form)
    if form.json is not None:
        return _of_schema(_schema(str(form.json), form), form)
    if form.regex is not None:
        return LLMatcher.grammar_from_regex(form.regex)
    if form.choice is not None:
        return "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in form.choice)
    assert form.grammar is not None
    return _of_grammar(form.grammar, form)


def _schema(text: str, form: StructuredOutputs) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"the JSON schema is not JSON: {reason}", param=form.named) from None
    if schema is True:
        return {}
    if schema is False:
        raise InputError("the JSON schema is false: no answer could have it", param=form.named)
    if not isinstance(schema, dict):
        raise InputError(
            f"a JSON schema is an object, true or false, not {type(schema).__name__}: {text[:40]}", param=form.named
        )
    return schema


def _of_schema(schema: dict[str, Any], form: StructuredOutputs) -> str:
    from llguidance import LLMatcher

    options: dict[str, Any] = {
        "item_separator": ",",
        "key_separator": ":",
        "whitespace_flexible": False,
        "coerce_one_of": False,
        "lenient": False,
    }
    if form.any_whitespace:
        options["whitespace_pattern"] = WHITE_SPACE
    try:
        text: str = LLMatcher.grammar_from_json_schema(
            json.dumps(_tightened({name: value for name, value in schema.items() if name != "x-guidance"})),
            overrides=options,  # type: ignore[arg-type]
        )
    except ValueError as error:
        raise InputError(f"the JSON schema cannot be read: {error}", param=form.named) from None
    return text


def _tightened(schema: Any) -> Any:
    """With patterns beside the formats that need them."""
    if isinstance(schema, list):
        return [_tightened(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for name, value in schema.items():
        if name in _NAMES and isinstance(value, dict):
            made[name] = {key: _tightened(inner) for key, inner in value.items()}
        else:
            made[name] = value if name in _DATA else _tightened(value)
    format = schema.get("format")
    pattern = _PATTERNS.get(format) if isinstance(format, str) else None
    if pattern is not None:
        both = schema.get("allOf")
        made["allOf"] = [*(_tightened(both) if isinstance(both, list) else []), {"pattern": pattern}]
    return made


def _of_grammar(text: str, form: StructuredOutputs) -> str:
    if text.lstrip().startswith("{"):
        raise InputError("a grammar is Lark or GBNF text, not JSON; a JSON schema goes into json", param=form.named)
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        converted: str = any_to_lark(text)
    except RecursionError:
        raise InputError("the grammar is nested too deeply", param=form.named) from None
    except Exception as error:  # the converter raises whatever it stumbles over
        raise InputError(f"the grammar cannot be read as GBNF: {str(error)[:300]}", param=form.named) from None
    return converted
