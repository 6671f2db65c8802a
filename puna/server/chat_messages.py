"""The messages of a chat as clients send them, checked one by one, in the shape that the model's side works with.

That shape is OpenAI's, with a call's arguments as an object where they are one. It knows roles and fields; it knows no
template.
"""

from __future__ import annotations

import json
from typing import Any

from puna.server.errors import RequestError
from puna.server.ignored import Ignored

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# Fields that clients send back with an assistant's message; these values say nothing.
_EMPTY_FIELDS: dict[str, tuple[Any, ...]] = {
    "refusal": (None,),
    "audio": (None,),
    "annotations": (None, []),
}
_READ_FIELDS = {
    "role",
    "content",
    "name",
    "tool_calls",
    "function_call",
    "tool_call_id",
    *("reasoning_content", "reasoning"),
}
_PART_FIELDS = {"type", "text", "cache_control"}  # the last asks for what happens anyway
_OLD_CALL = "call_of_function"  # the id of calls that had none


def read_message(index: int, message: dict[str, Any], ignored: Ignored) -> dict[str, Any]:
    where = f"messages[{index}]"
    role = message.get("role")
    if role not in ROLES:
        raise RequestError(f"{where}.role is {str(role)[:80]!r}; allowed: {', '.join(ROLES)}", param=f"{where}.role")
    for name, value in message.items():
        if name in _READ_FIELDS:
            continue
        if name not in _EMPTY_FIELDS:
            ignored.note(f"{where}.{name}")
        elif value not in _EMPTY_FIELDS[name]:
            raise _unsupported(f"{where}.{name[:80]}")
    for name in ("name", "tool_call_id", "reasoning_content", "reasoning"):
        if not isinstance(message.get(name), str | None):
            raise RequestError(f"{where}.{name} takes a string", param=f"{where}.{name}")
    read: dict[str, Any] = {"role": "system" if role == "developer" else "tool" if role == "function" else role}
    read["content"] = _content(message.get("content"), f"{where}.content", role, ignored)
    if message.get("name") is not None:
        read["name"] = message["name"]
    if role == "assistant":
        read |= _answer_fields(where, message, ignored)
    else:
        for name in ("tool_calls", "function_call", "reasoning_content", "reasoning"):
            if message.get(name):
                raise _unsupported(f"{where}.{name}")
    if role == "tool":
        if not message.get("tool_call_id"):
            raise RequestError(
                f"{where}.tool_call_id is missing; it names the call whose result this is",
                param=f"{where}.tool_call_id",
            )
        read["tool_call_id"] = message["tool_call_id"]
    elif role == "function":
        read["tool_call_id"] = _OLD_CALL
    elif message.get("tool_call_id"):
        raise _unsupported(f"{where}.tool_call_id")
    return read


def named_results(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results with the name of the tool whose call they answer, which some templates ask for."""
    names: dict[str, str] = {}
    named = []
    for message in messages:
        for call in message.get("tool_calls") or ():
            names[call["id"]] = call["function"]["name"]
        if message["role"] == "tool" and "name" not in message and message["tool_call_id"] in names:
            message = {**message, "name": names[message["tool_call_id"]]}
        named.append(message)
    return named


def call_of(where: str, name: Any, arguments: Any, call_id: Any) -> dict[str, Any]:
    """A past call. Arguments that are no JSON object stay the text that they are: a model wrote them."""
    if not isinstance(name, str) or not name:
        raise RequestError(f"{where}.name is missing; it takes the name of the tool", param=f"{where}.name")
    if not isinstance(arguments, str | dict | None):
        raise RequestError(f"{where}.arguments takes a string of JSON", param=f"{where}.arguments")
    if not isinstance(call_id, str) or not call_id:
        raise RequestError(f"{where} has no id that a result could name; it takes a string", param=where)
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            value = None
        arguments = value if isinstance(value, dict) else arguments
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments or {}}}


def _answer_fields(where: str, message: dict[str, Any], ignored: Ignored) -> dict[str, Any]:
    """Of an assistant's message: its calls and its reasoning."""
    read: dict[str, Any] = {}
    thought = message.get("reasoning_content") or message.get("reasoning")
    if thought:
        read["reasoning_content"] = thought
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise RequestError(f"{where}.tool_calls takes a list of calls", param=f"{where}.tool_calls")
    made = []
    for number, call in enumerate(calls):
        at = f"{where}.tool_calls[{number}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or call.get("type", "function") != "function":
            raise RequestError(
                f"{at} is no call of a function: {{'id': ..., 'type': 'function', 'function': {{'name': ..., "
                "'arguments': '...'}}",
                param=at,
            )
        for name in call.keys() - {"id", "type", "function", "index"}:
            ignored.note(f"{at}.{name}")
        made.append(call_of(f"{at}.function", function.get("name"), function.get("arguments"), call.get("id")))
    old = message.get("function_call")
    if old is not None:
        if not isinstance(old, dict):
            raise RequestError(f"{where}.function_call takes an object", param=f"{where}.function_call")
        made.append(call_of(f"{where}.function_call", old.get("name"), old.get("arguments"), _OLD_CALL))
    return {**read, "tool_calls": made} if made else read


def _content(content: Any, where: str, role: str, ignored: Ignored) -> str | list[Any]:
    if isinstance(content, str):
        return content
    if content is None and role in ("assistant", "tool", "function"):
        return ""
    if isinstance(content, list):
        for position, part in enumerate(content):
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise RequestError(
                    f"{where}[{position}] is not a text part; this model reads text only: "
                    "{'type': 'text', 'text': '...'}",
                    param=f"{where}[{position}]",
                )
            for name in part.keys() - _PART_FIELDS:
                ignored.note(f"{where}[{position}].{name}")
        return [{"type": "text", "text": part["text"]} for part in content]
    raise RequestError(f"{where} takes a string or a list of text parts", param=where)


def _unsupported(where: str) -> RequestError:
    return RequestError(
        f"{where} is not supported by this server; leave it out", param=where, code="unsupported_parameter"
    )
