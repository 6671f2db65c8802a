"""The formats there are, and which of them a model speaks: told by its chat template.

A format is how calls look in the model's text, and the marks that may be tokens of their own, which are shown to its
reader though they are shown to nobody else. A template that knows no tools has the format `plain`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from puna.models.calls.json_reader import HERMES, LLAMA, MISTRAL, PLAIN, JsonCallReader
from puna.models.calls.python_reader import CLOSE, OPEN, PythonCallReader
from puna.models.calls.reader import CallReader
from puna.models.calls.reasoning import KNOWN, ReasoningMarks
from puna.models.template import ChatTemplate

MakeReader = Callable[[Collection[str], Collection[str]], CallReader]


@dataclass(frozen=True)
class CallFormat:
    """`signs`: one of them is in the template of a model that speaks it. `tokens`: marks that may be tokens. `call`:
    the text before the name of a call that is forced, between name and arguments, and behind them. `between`: what
    stands between two calls. `trigger`: what begins a call wherever it comes; "" where calls begin the answer."""

    name: str
    make_reader: MakeReader
    signs: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    call: tuple[str, str, str] = ('{"name": "', '", "arguments": ', "}")
    between: str = "\n"
    trigger: str = ""


PLAIN_FORMAT = CallFormat("plain", partial(JsonCallReader, PLAIN))

# In the order in which signs are looked for.
FORMATS = {
    known.name: known
    for known in (
        CallFormat(
            "mistral-args",
            partial(JsonCallReader, MISTRAL),
            signs=("[ARGS]",),
            tokens=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
            call=("[TOOL_CALLS]", "[ARGS]", ""),
            between="",
            trigger="[TOOL_CALLS]",
        ),
        CallFormat(
            "mistral",
            partial(JsonCallReader, MISTRAL),
            signs=("[TOOL_CALLS]",),
            tokens=("[TOOL_CALLS]",),
            call=('[TOOL_CALLS][{"name": "', '", "arguments": ', "}]"),
            between="",
            trigger="[TOOL_CALLS]",
        ),
        CallFormat(
            "hermes",
            partial(JsonCallReader, HERMES),
            signs=("<tool_call>",),
            tokens=("<tool_call>", "</tool_call>"),
            call=('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>"),
            trigger="<tool_call>",
        ),
        CallFormat("pythonic", PythonCallReader, signs=("func_name1(", OPEN), tokens=(OPEN, CLOSE)),
        CallFormat(
            "llama",
            partial(JsonCallReader, LLAMA),
            signs=("<|python_tag|>", '"parameters": '),
            tokens=("<|python_tag|>",),
            call=('{"name": "', '", "parameters": ', "}"),
            between="; ",
        ),
        PLAIN_FORMAT,
    )
}
CALL_FORMATS = ("auto", *FORMATS)
REASONING_FORMATS = ("auto", "none", *(marks.name for marks in KNOWN))


def call_format(template: ChatTemplate | None, wanted: str = "auto") -> CallFormat:
    """The format called `wanted`, or the one that the template speaks."""
    if wanted != "auto":
        return FORMATS[wanted]
    if template is None or not template.reads("tools") or "<function=" in template.source:
        return PLAIN_FORMAT
    return next((f for f in FORMATS.values() if any(sign in template.source for sign in f.signs)), PLAIN_FORMAT)


def reasoning_marks(template: ChatTemplate | None, wanted: str = "auto") -> ReasoningMarks | None:
    """The marks called `wanted`, or those that the template has; None where the model does not reason in marks."""
    if wanted != "auto":
        return next((marks for marks in KNOWN if marks.name == wanted), None)
    return next((marks for marks in KNOWN if template is not None and marks.closes in template.source), None)
