"""Renders a conversation with a model's chat template.

A template is a program from a stranger, in Jinja; `template_sandbox.py` bounds what it can do and cost. This module
knows what templates expect to find (Hugging Face's conventions: `messages`, `tools`, `raise_exception`, `tojson` ...)
and what a conversation has to look like. Whatever goes wrong becomes one TemplateError, with the template's line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from types import TracebackType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context

from puna.errors import TemplateError
from puna.models.template_budget import Budget
from puna.models.template_sandbox import BUDGET, BoundedEnvironment, GenerationBlocks, add_charges, budget_of

MAX_SOURCE_CHARACTERS = 1_000_000
MAX_OUTPUT_CHARACTERS = 2**24


class ChatTemplate:
    """One compiled template. Rendering is thread-safe."""

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "", *, deadline_s: float = 2.0) -> None:
        """Raises TemplateError, with the line, where the source is no valid template. A rendering may compute for
        `deadline_s` seconds."""
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise TemplateError(f"the chat template has {len(source)} characters; allowed: {MAX_SOURCE_CHARACTERS}")
        self.source = source
        self._special_tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._deadline_s = deadline_s
        environment = _new_environment()
        try:
            tree = environment.parse(source)
            self._reads_parts = _reads_content_parts(tree)
            self.variables = frozenset(name.name for name in tree.find_all(nodes.Name) if name.ctx == "load")
            code = environment.compile(add_charges(tree, environment), filename=_FILENAME)
            self._template = jinja2.Template.from_code(environment, code, environment.globals)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"the chat template is broken at line {error.lineno}: {error.message}") from None
        except Exception as error:  # the compiler was not made for hostile input: deep nesting, huge constants
            raise TemplateError(f"the chat template cannot be compiled: {type(error).__name__}: {error}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """The prompt's text. Content given as a list of text parts reaches templates that cannot read parts as one
        string, the parts joined by line ends. `extra` are more variables for the template (`enable_thinking`, say).

        Raises TemplateError for messages of the wrong form, for what the template itself refuses, and for a template
        that breaks or wants more time or memory than it may have.
        """
        check_messages(messages)
        variables: dict[str, Any] = {
            **extra,
            **self._special_tokens,
            "messages": [self._prepared(message) for message in messages],
            "tools": tools,
            "documents": extra.get("documents"),
            "add_generation_prompt": add_generation_prompt,
            BUDGET: Budget(self._deadline_s),
        }
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(variables):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_OUTPUT_CHARACTERS:
                    raise SecurityError(f"the template writes more than {MAX_OUTPUT_CHARACTERS} characters")
        except _RefusedError as error:
            raise TemplateError(f"the chat template refuses the conversation: {error}", param="messages") from None
        except Exception as error:  # a template can fail with whatever Python can
            raise TemplateError(_described(error)) from None
        return "".join(pieces)

    def reads(self, variable: str) -> bool:
        """Whether the template asks for it."""
        return variable in self.variables

    @cached_property
    def wants_argument_text(self) -> bool:
        """Whether it can write a call's arguments only where they are a text; most want an object."""
        return not self._writes_call({"city": "Paris"}) and self._writes_call('{"city": "Paris"}')

    @cached_property
    def wants_short_ids(self) -> bool:
        """Whether it refuses ids of calls that have not nine letters and digits, as Mistral's does."""
        return "length != 9" in self.source or "length!=9" in self.source

    def _writes_call(self, arguments: Any) -> bool:
        call = {"id": "abcdefghi", "type": "function", "function": {"name": "look", "arguments": arguments}}
        question, calling = {"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}
        try:
            return "Paris" in self.render([question, calling], tools=[])
        except TemplateError:
            return False

    def _prepared(self, message: Mapping[str, Any]) -> dict[str, Any]:
        content = message.get("content")
        if self._reads_parts or not isinstance(content, list):
            return dict(message)
        return {**message, "content": "\n".join(part["text"] for part in content)}


def check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raises TemplateError, naming the message, unless every one has a role and a content of text."""
    if not isinstance(messages, list | tuple) or not messages:
        raise TemplateError("messages has to be a list of at least one message", param="messages")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping):
            _wrong(where, f"is {type(message).__name__}; expected an object with 'role' and 'content'")
        role = message.get("role")
        if not isinstance(role, str) or not role:
            _wrong(f"{where}.role", "is missing or no string; expected 'system', 'user', 'assistant' or 'tool'")
        content = message.get("content")
        if isinstance(content, list):
            _check_parts(where, content)
        elif content is None:
            if not message.get("tool_calls"):
                _wrong(f"{where}.content", "is missing; expected a string or a list of text parts")
        elif not isinstance(content, str):
            _wrong(f"{where}.content", f"is {type(content).__name__}; expected a string or a list of text parts")


def _check_parts(where: str, parts: list[Any]) -> None:
    for number, part in enumerate(parts):
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            _wrong(
                f"{where}.content[{number}]",
                f'is a part of type {str(kind)[:40]!r}; expected {{"type": "text", "text": "..."}}',
            )


def _wrong(where: str, what: str) -> NoReturn:
    raise TemplateError(f"{where} {what}", param=where)


class _RefusedError(Exception):
    """The template called `raise_exception`."""


_FILENAME = "<chat template>"


def _new_environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationBlocks]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


@pass_context
def _tojson(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Hugging Face's templates expect it: nothing escaped for HTML, characters as they are."""
    budget = budget_of(context)
    budget.step()
    budget.weigh(value)
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= 16):
        raise SecurityError("tojson takes an indent from 0 to 16 here")
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    budget.weigh(text)
    return text


def _raise_exception(message: Any) -> NoReturn:
    raise _RefusedError(str(message)[:2000])


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 100 or re.search(r"\d{3}", pattern):
        raise SecurityError("strftime_now takes a short pattern without widths here")
    return datetime.now().strftime(pattern)


def _reads_content_parts(tree: nodes.Template) -> bool:
    """Whether the template walks through a message's content, as one does that takes parts."""
    for loop in tree.find_all(nodes.For):
        subject = loop.iter
        while isinstance(subject, nodes.Filter) and subject.node is not None:
            subject = subject.node
        if isinstance(subject, nodes.Name) and subject.name == "content":
            return True
        if isinstance(subject, nodes.Getattr) and subject.attr == "content":
            return True
        if (
            isinstance(subject, nodes.Getitem)
            and isinstance(subject.arg, nodes.Const)
            and subject.arg.value == "content"
        ):
            return True
    return False


def _described(error: Exception) -> str:
    line = _line(error.__traceback__)
    where = f" at line {line}" if line else ""
    what = "recurses too deeply" if isinstance(error, RecursionError) else f"fails: {str(error)[:500]}"
    if isinstance(error, SecurityError):
        what = f"is stopped: {str(error)[:500]}"
    return f"the chat template{where} {what}"


def _line(traceback: TracebackType | None) -> int | None:
    """The innermost line of the template itself; Jinja has put its lines into the traceback."""
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == _FILENAME:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line
