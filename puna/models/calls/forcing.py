"""Grammars that make a model call: in Lark, as llguidance reads it, with the tools' schemas inside.

A forced answer is one call or several behind each other and nothing else, and can end behind a call only. A model that
reasons may do so before. An answer whose calls have to follow their schemas, if there are any, is any text in which a
call that begins is held to its form. It knows formats and tools; it compiles nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from puna.models.calls.formats import PLAIN_FORMAT, CallFormat
from puna.models.calls.reasoning import ReasoningMarks
from puna.models.calls.tool import Tool

MAX_CALLS = 8  # that one forced answer has room for
_HEADER = "%llguidance {}\n"
_ANY_ARGUMENTS: dict[str, Any] = {"type": "object"}
# As models were taught to write it. Every character stands for itself: half of a surrogate pair would be no text.
_STYLE = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": False,
    "lenient": False,
    "json_allowed_escapes": 'nrbtf\\"',
}

TokenOf = Callable[[str], int | None]  # the id of a special token, None for what is plain text


def forced_format(format: CallFormat) -> CallFormat:
    """How a forced call is written: in Python's spelling none is forced, JSON is asked for instead."""
    return PLAIN_FORMAT if format.name == "pythonic" else format


def forced_calls(
    format: CallFormat,
    tools: Sequence[Tool],
    special: TokenOf,
    *,
    several: bool,
    reasoning: ReasoningMarks | None = None,
    is_open: bool = False,
) -> str:
    """The grammar of an answer that is calls of `tools`. `is_open`: the prompt has begun a block of reasoning; else the
    model may begin one itself."""
    more = f" (between call){{0,{MAX_CALLS - 1}}}" if several else ""
    between = f"between: {_text(format, format.between, special)}\n" if several and format.between else ""
    if several and not format.between:
        more = f" call{{0,{MAX_CALLS - 1}}}"
    thought, rule = _thought(reasoning, special, is_open)
    return (
        f"{_HEADER}start: {thought}call{more}\n{between}{rule}{_calls(format, [(t, t.schema) for t in tools], special)}"
    )


def held_calls(
    format: CallFormat,
    tools: Sequence[Tool],
    special: TokenOf,
    *,
    reasoning: ReasoningMarks | None = None,
    is_open: bool = False,
    several: bool = True,
) -> str:
    """The grammar of any answer in which calls have their form: strict tools that of their schema, the others an
    object of any arguments."""
    wanted = [(tool, tool.schema if tool.strict else _ANY_ARGUMENTS) for tool in tools]
    thought, rule = _thought(reasoning, special, is_open)
    calls = _calls(format, wanted, special, without_trigger=bool(format.trigger))
    if not format.trigger:
        more = f" (between call){{0,{MAX_CALLS - 1}}}" if several else ""
        between = f"between: {_text(format, format.between, special)}\n" if several else ""
        words = "words: /[^{\\[\\s`<](?s:.*)/\n"
        return f"{_HEADER}start: {thought}(call{more} | words)\n{words}{between}{rule}{calls}"
    token = special(format.trigger)
    head = f"head[lazy]: TEXT {_quoted(format.trigger)}\n" if token is None else f"head: TEXT <[{token}]>\n"
    amount = f"{{0,{MAX_CALLS if several else 1}}}"
    return f"{_HEADER}start: {thought}(head call){amount} words\nwords: TEXT\nTEXT: /(?s:.*)/\n{head}{rule}{calls}"


def _calls(
    format: CallFormat, tools: Sequence[tuple[Tool, dict[str, Any]]], special: TokenOf, *, without_trigger: bool = False
) -> str:
    before, between, behind = format.call
    if without_trigger:
        before = before.removeprefix(format.trigger)
    rules = [f"call: {' | '.join(f'call_{number}' for number in range(len(tools)))}"]
    for number, (tool, schema) in enumerate(tools):
        opening = _text(format, before + tool.name + between, special)
        rules.append(f"call_{number}: {opening} arguments_{number} {_text(format, behind, special)}".rstrip())
        rules.append(f"arguments_{number}: %json {_schema_text(schema)}")
    return "\n".join(rules) + "\n"


def _thought(reasoning: ReasoningMarks | None, special: TokenOf, is_open: bool) -> tuple[str, str]:
    """What may stand before all else, and the rule for it."""
    if reasoning is None:
        return "", ""
    opens, closes = special(reasoning.opens), special(reasoning.closes)
    if closes is None:
        inside = f"thought[lazy]: /(?s:.*){re.escape(reasoning.closes).replace('/', chr(92) + '/')}/\n"
    else:
        inside = f"thought: THOUGHT <[{closes}]>\nTHOUGHT: /(?s:.*)/\n"
    gap = "GAP: /\\n{0,2}/\n"
    if is_open:
        return "thought GAP ", inside + gap
    opening = _quoted(reasoning.opens) if opens is None else f"<[{opens}]>"
    return f"({opening} thought GAP)? ", inside + gap


def _text(format: CallFormat, text: str, special: TokenOf) -> str:
    """A text as the grammar spells it: marks that are special tokens as tokens, the rest quoted."""
    marks = {mark: token for mark in format.tokens if (token := special(mark)) is not None}
    if not marks:
        return _quoted(text) if text else ""
    parts = re.split(f"({'|'.join(map(re.escape, marks))})", text)
    return " ".join(f"<[{marks[part]}]>" if part in marks else _quoted(part) for part in parts if part)


def _schema_text(schema: dict[str, Any]) -> str:
    """`::=` would make the whole of it GBNF; in JSON it stands in strings only, which can spell it otherwise."""
    return json.dumps({**schema, "x-guidance": _STYLE}).replace("::=", "\\u003a:=")


def _quoted(text: str) -> str:
    return json.dumps(text)
