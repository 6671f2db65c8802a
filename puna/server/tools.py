"""Tools as clients send them, in three shapes: of chat completions (and its older functions), responses and messages.

Each becomes a `ToolUse`. What no model could be told, or no call could have, is refused with the field and the reason.
It knows the wire; it knows no model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from puna.models.calls.tool import NO_TOOLS, Tool, ToolUse
from puna.server.errors import RequestError
from puna.server.ignored import Ignored

MAX_TOOLS = 1024
MAX_NAME = 128
MAX_SCHEMA_DEPTH = 40
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_FUNCTION_FIELDS = {"name", "description", "parameters", "strict"}

Choice = tuple[Literal["none", "auto", "required"], list[str] | None]  # and the names that may be called, if not all


def chat_tools(body: Any, ignored: Ignored) -> ToolUse:
    """Of a body with `tools`, `tool_choice`, `parallel_tool_calls`, or with `functions` and `function_call`."""
    if body.functions and body.tools:
        raise RequestError("functions and tools say the same; give tools only", param="functions")
    old_choice = _choice("function_call", body.function_call, _function_choice)
    if body.functions:
        functions = _list("functions", body.functions)
        tools = [_function(f"functions[{n}]", f, ignored) for n, f in enumerate(functions)]
        return _use(tools, old_choice, False, "function_call")
    _use([], old_choice, False, "function_call")
    tools = []
    for number, entry in enumerate(_list("tools", body.tools)):
        where = f"tools[{number}]"
        _check_kind(where, entry, ("function",))
        for name in entry.keys() - {"type", "function"}:
            ignored.note(f"{where}.{name}")
        tools.append(_function(f"{where}.function", entry.get("function"), ignored))
    return _use(tools, _choice("tool_choice", body.tool_choice, _chat_choice), body.parallel_tool_calls)


def response_tools(body: Any, ignored: Ignored) -> ToolUse:
    tools = []
    for number, entry in enumerate(_list("tools", body.tools)):
        where = f"tools[{number}]"
        _check_kind(where, entry, ("function",))
        tools.append(_function(where, {key: value for key, value in entry.items() if key != "type"}, ignored))
    return _use(tools, _choice("tool_choice", body.tool_choice, _response_choice), body.parallel_tool_calls)


def message_tools(body: Any, ignored: Ignored) -> ToolUse:
    tools = []
    for number, entry in enumerate(_list("tools", body.tools)):
        where = f"tools[{number}]"
        _check_kind(where, entry, (None, "custom"))
        renamed = {"parameters" if key == "input_schema" else key: value for key, value in entry.items()}
        kept = {key: value for key, value in renamed.items() if key not in ("type", "cache_control")}
        tools.append(_function(where, kept, ignored, schema="input_schema"))
    choice = body.tool_choice
    alone = isinstance(choice, Mapping) and choice.get("disable_parallel_tool_use") is True
    return _use(tools, _choice("tool_choice", choice, _message_choice), not alone)


def _use(tools: list[Tool], choice: Choice, parallel: bool | None, where: str = "tool_choice") -> ToolUse:
    seen: set[str] = set()
    for number, tool in enumerate(tools):
        if tool.name in seen:
            raise RequestError(f"tools[{number}] has the name {tool.name!r} again; names differ", param="tools")
        seen.add(tool.name)
    mode, names = choice
    for name in names or ():
        if name not in seen:
            raise RequestError(
                f"{where} names {str(name)[:80]!r}, which is not among the tools; send the tool, too", param=where
            )
    if mode == "required" and not tools:
        raise RequestError(f"{where} asks for a call, but there are no tools; send some", param=where)
    if not tools:
        return NO_TOOLS
    allowed = tuple(tool.name for tool in tools if names is None or tool.name in names)
    is_named = names is not None and mode == "required" and len(names) == 1
    return ToolUse(tuple(tools), allowed, mode, is_named, parallel is not False)


def _list(where: str, value: Any) -> list[Mapping[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise RequestError(f"{where} takes a list of objects", param=where)
    if len(value) > MAX_TOOLS:
        raise RequestError(f"{where} has {len(value)} entries; the limit is {MAX_TOOLS}", param=where)
    return value


def _check_kind(where: str, entry: Mapping[str, Any], allowed: Iterable[str | None]) -> None:
    kind = entry.get("type")
    if kind not in allowed:
        raise RequestError(
            f"{where}.type is {str(kind)[:80]!r}; this server calls functions of the client's own only: "
            f"{', '.join(name for name in allowed if name)}",
            code="unsupported_parameter",
            param=f"{where}.type",
        )


def _function(where: str, given: Any, ignored: Ignored, schema: str = "parameters") -> Tool:
    if not isinstance(given, dict):
        raise RequestError(f"{where} takes an object with name, description and {schema}", param=where)
    name, description, parameters = given.get("name"), given.get("description"), given.get("parameters")
    if not isinstance(name, str) or len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise RequestError(
            f"{where}.name is {str(name)[:80]!r}; it takes 1 to {MAX_NAME} letters, digits, '_', '-' and '.'",
            param=f"{where}.name",
        )
    if not isinstance(description, str | None):
        raise RequestError(f"{where}.description takes a string", param=f"{where}.description")
    if parameters is not None:
        _check_schema(f"{where}.{schema}", parameters)
    if not isinstance(given.get("strict"), bool | None):
        raise RequestError(f"{where}.strict takes true or false", param=f"{where}.strict")
    for field in given.keys() - _FUNCTION_FIELDS:
        ignored.note(f"{where}.{field}")
    return Tool(name, description, parameters, bool(given.get("strict")))


def _check_schema(where: str, schema: Any) -> None:
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise RequestError(f"{where} takes a JSON schema of an object: {{'type': 'object', ...}}", param=where)
    waiting: list[tuple[Any, int]] = [(schema, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_SCHEMA_DEPTH:
            raise RequestError(f"{where} is nested more than {MAX_SCHEMA_DEPTH} levels deep", param=where)
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting += [(entry, depth + 1) for entry in inner]


def _choice(where: str, value: Any, read: Callable[[Mapping[str, Any]], Choice | None]) -> Choice:
    if value is None:
        return "auto", None
    if value in ("none", "auto", "required"):
        return value, None
    if isinstance(value, dict) and (found := read(value)) is not None:
        return found
    raise RequestError(
        f"{where} is {str(value)[:80]!r}; it takes 'none', 'auto', 'required', or an object that names a tool",
        param=where,
    )


def _named(name: Any) -> Choice | None:
    return ("required", [name]) if isinstance(name, str) else None


def _function_choice(value: Mapping[str, Any]) -> Choice | None:
    return _named(value.get("name"))


def _chat_choice(value: Mapping[str, Any]) -> Choice | None:
    inner = value.get(str(value.get("type")))
    if not isinstance(inner, dict):
        return None
    return _named(inner.get("name")) if value["type"] == "function" else _some(value["type"], inner)


def _response_choice(value: Mapping[str, Any]) -> Choice | None:
    if value.get("type") == "function":
        return _named(value.get("name"))
    return _some(value.get("type"), value)


def _some(kind: Any, value: Mapping[str, Any]) -> Choice | None:
    """OpenAI's `allowed_tools`: which of the tools may be called now."""
    mode, tools = value.get("mode"), value.get("tools")
    if kind != "allowed_tools" or mode not in ("auto", "required") or not isinstance(tools, list) or not tools:
        return None
    entries = [t.get("function", t) if isinstance(t, dict) else None for t in tools]
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
    return (mode, [str(name) for name in names]) if all(isinstance(name, str) for name in names) else None


def _message_choice(value: Mapping[str, Any]) -> Choice | None:
    match value.get("type"):
        case "auto":
            return "auto", None
        case "none":
            return "none", None
        case "any":
            return "required", None
        case "tool":
            return _named(value.get("name"))
    return None
