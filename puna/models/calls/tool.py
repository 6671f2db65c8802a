"""A tool that a model may call, and how it is to choose among several. Plain data, checked where it comes in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Tool:
    """`parameters`: a JSON schema of an object; None where the tool takes none. `strict`: a call has to follow it."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False

    @property
    def shape(self) -> dict[str, Any]:
        """As templates expect it, which is as OpenAI has it."""
        about = {} if self.description is None else {"description": self.description}
        parameters = {"type": "object", "properties": {}} if self.parameters is None else self.parameters
        return {"type": "function", "function": {"name": self.name, **about, "parameters": parameters}}

    @property
    def schema(self) -> dict[str, Any]:
        """What arguments that are forced have to follow: nothing that the schema does not name, unless it says so."""
        if self.parameters is None or not self.parameters:
            return NO_PARAMETERS
        composed = {"anyOf", "oneOf", "allOf", "$ref", "patternProperties", "additionalProperties", "if", "not"}
        closed = (
            {}
            if composed & self.parameters.keys() or "properties" not in self.parameters
            else {"additionalProperties": False}
        )
        return {"type": "object", **self.parameters, **closed}


@dataclass(frozen=True)
class ToolUse:
    """`tools`: those that the model is told of. `allowed`: names of those that it may call. `choice`: whether
    it has to. `is_named`: the client chose the one. `parallel`: several calls in one answer are welcome."""

    tools: tuple[Tool, ...] = ()
    allowed: tuple[str, ...] = ()
    choice: Literal["none", "auto", "required"] = "auto"
    is_named: bool = False
    parallel: bool = True

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        if self.choice == "none":
            return ()
        return tuple(tool for tool in self.tools if tool.name in self.allowed)

    @property
    def is_forced(self) -> bool:
        return self.choice == "required" and bool(self.callable_tools)


NO_TOOLS = ToolUse()


def all_of(tools: Iterable[Tool]) -> ToolUse:
    """All of them, as the model likes."""
    known = tuple(tools)
    return ToolUse(known, tuple(tool.name for tool in known))
