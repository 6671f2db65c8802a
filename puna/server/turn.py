"""One turn of a conversation: what the model is told, what form its answer has to take, and how it will be read.

It puts the model's way to speak (template, format of calls, marks of reasoning) together with what a client wants of
this turn. It knows nothing of the engine, nor of the shapes that clients see.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from puna.engine.params import SamplingParams
from puna.engine.structure import StructuredOutputs
from puna.models.calls.endless import is_endless
from puna.models.calls.forcing import forced_calls, forced_format, held_calls
from puna.models.calls.formats import PLAIN_FORMAT, CallFormat
from puna.models.calls.pieces import PieceReader
from puna.models.calls.reasoning import ReasoningMarks, ReasoningReader, ReasoningTokens
from puna.models.calls.tool import NO_TOOLS, ToolUse
from puna.server.errors import RequestError
from puna.server.ignored import Ignored
from puna.server.parts import AnswerParts

if TYPE_CHECKING:
    from puna.models.calls.reader import CallReader
    from puna.models.template import ChatTemplate
    from puna.models.tokenizer import Tokenizer

_OWN_VARIABLES = ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token")
_NO_EFFORT = ("none", "minimal")


@dataclass(frozen=True)
class Speech:
    """How the served model speaks."""

    template: ChatTemplate | None = None
    calls: CallFormat = PLAIN_FORMAT
    reasoning: ReasoningMarks | None = None

    def reads(self, variable: str) -> bool:
        return self.template is not None and self.template.reads(variable)


@dataclass(frozen=True)
class Wishes:
    """What a client wants of one turn. `variables`: more of them for the template. `prefill`: how the answer begins,
    which it does not repeat; `continues`: it begins with the last message, the assistant's."""

    tools: ToolUse = NO_TOOLS
    variables: dict[str, Any] = field(default_factory=dict)
    prefill: str = ""
    continues: bool = False
    add_generation_prompt: bool = True


def variables_of(
    speech: Speech, ignored: Ignored, given: dict[str, Any] | None, effort: str | None, where: str = "reasoning_effort"
) -> dict[str, Any]:
    """Of `chat_template_kwargs` and of an effort: what the template reads. Others are noted, or refused."""
    variables: dict[str, Any] = {}
    for name, value in (given or {}).items():
        param = f"chat_template_kwargs.{name[:80]}"
        if name in _OWN_VARIABLES:
            raise RequestError(f"{param} is not a variable that can be set; send it as a field of its own", param=param)
        if speech.reads(name):
            variables[name] = value
        else:
            ignored.note(param)
    if effort is None:
        return variables
    if speech.reads("reasoning_effort"):
        variables.setdefault("reasoning_effort", effort)
    elif speech.reads("enable_thinking"):
        variables.setdefault("enable_thinking", effort not in _NO_EFFORT)
    elif effort != "none":
        raise RequestError(
            f"{where} is {effort[:40]!r}, but this model's template knows no effort; leave it out (accepted: null, "
            '"none")',
            code="unsupported_parameter",
            param=where,
        )
    return variables


def formed(
    speech: Speech, tokenizer: Tokenizer, tools: ToolUse, params: SamplingParams, prompt_text: str
) -> tuple[SamplingParams, AnswerParts | None]:
    """The parameters with the form of the answer, and how it is taken apart; None where it is content and no more."""
    marks, called, format = speech.reasoning, tools.callable_tools, speech.calls
    if params.structured_outputs is not None and not tools.is_forced:
        return params, None  # the form leaves no room for anything else
    if marks is None and not called:
        return params, None
    is_open = marks is not None and marks.is_open(prompt_text)
    names = [tool.name for tool in called]
    bound: list[str] = []

    def special(text: str) -> int | None:
        token = tokenizer.token_id(text)
        return token if token in tokenizer.special_ids else None

    if tools.is_forced:
        if endless := [tool.name for tool in called if is_endless(tool.schema)]:
            raise RequestError(f"no arguments of {endless[0]} ever end: its schema needs itself in them", param="tools")
        format, bound = forced_format(format), names
        grammar = forced_calls(
            format, called, special, several=tools.parallel and not tools.is_named, reasoning=marks, is_open=is_open
        )
        # Its grammar says where such an answer ends; a stop string would cut a call in two.
        params = replace(params, structured_outputs=StructuredOutputs(grammar=grammar, named="tools"), stop=[])
    elif any(tool.strict for tool in called):
        format, bound = forced_format(format), names
        grammar = held_calls(format, called, special, several=tools.parallel, reasoning=marks, is_open=is_open)
        params = replace(params, structured_outputs=StructuredOutputs(grammar=grammar, named="tools"))
    make_tokens = None
    if marks is not None:
        make_tokens = functools.partial(ReasoningTokens, marks, tokenizer.token_text, is_open=is_open)

    def make_reader() -> PieceReader:
        reader: CallReader | None = format.make_reader(names, bound) if names else None
        if marks is not None:
            return ReasoningReader(marks, reader, is_open=is_open)
        assert reader is not None, "else there is nothing to take apart"
        return reader

    shown = (*format.tokens, *((marks.opens, marks.closes) if marks is not None else ()))
    tokens = frozenset(token for text in shown if (token := special(text)) is not None)
    parts = AnswerParts(make_reader, make_tokens, parallel=tools.parallel, is_named=tools.is_named, shown_tokens=tokens)
    return params, parts
