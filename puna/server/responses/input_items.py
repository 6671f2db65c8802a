"""Input items of a response as messages of a chat, and messages as the items that they were.

A model's calls are items of their own there, and belong to one message of the assistant here; so do reasoning and the
text behind it. It knows the wire's shapes of items; it knows no model and no stored response.
"""

from __future__ import annotations

import json
from typing import Any

from puna.server.chat_messages import call_of
from puna.server.errors import RequestError
from puna.server.ignored import Ignored

_TEXT_PARTS = ("input_text", "output_text", "text")
_PART_FIELDS = {"type", "text", "annotations", "logprobs"}
_FIELDS = {
    "message": {"type", "role", "content", "id", "status", "phase"},
    "function_call": {"type", "id", "call_id", "name", "arguments", "status"},
    "function_call_output": {"type", "id", "call_id", "output", "status"},
    "reasoning": {"type", "id", "summary", "content", "encrypted_content", "status"},
}


def messages_of(given: str | list[dict[str, Any]], ignored: Ignored) -> list[dict[str, Any]]:
    """The input as messages of a chat. RequestError for an item of another kind."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[dict[str, Any]] = []
    thought = ""
    for index, item in enumerate(given):
        where = f"input[{index}]"
        kind = item.get("type", "message")
        if kind not in _FIELDS:
            raise _unsupported(
                f"{where} is of the type {str(kind)[:40]!r}; this server takes {', '.join(_FIELDS)}, as in "
                "{'role': 'user', 'content': '...'}",
                where,
            )
        for name in item.keys() - _FIELDS[kind]:
            ignored.note(f"{where}.{name}")
        if kind == "reasoning":
            thought = _thought(where, item)
            continue
        if kind == "function_call_output":
            messages.append(_output(where, item, ignored))
            continue
        if kind == "message":
            messages.append(_message(where, item, ignored))
        else:
            call = call_of(where, item.get("name"), item.get("arguments"), item.get("call_id"))
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            messages[-1].setdefault("tool_calls", []).append(call)
        if thought and messages[-1]["role"] == "assistant":
            messages[-1]["reasoning_content"] = thought
        thought = ""
    return messages


def items_of(message: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """`name`: what their ids are made of."""
    content = message["content"]
    texts = [content] if isinstance(content, str) else [part["text"] for part in content]
    if message["role"] == "tool":
        made: dict[str, Any] = {"id": f"fco_{name}", "type": "function_call_output", "call_id": message["tool_call_id"]}
        return [{**made, "output": "\n".join(texts), "status": "completed"}]
    items: list[dict[str, Any]] = []
    if thought := message.get("reasoning_content"):
        parts = [{"type": "reasoning_text", "text": thought}]
        items.append({"id": f"rs_{name}", "type": "reasoning", "summary": [], "content": parts, "status": "completed"})
    calls = message.get("tool_calls") or []
    if any(texts) or not calls:
        kind = "output_text" if message["role"] == "assistant" else "input_text"
        items.append(
            {
                "id": f"msg_{name}",
                "type": "message",
                "role": message["role"],
                "status": "completed",
                "content": [{"type": kind, "text": text} for text in texts],
            }
        )
    for number, call in enumerate(calls):
        function, arguments = call["function"], call["function"]["arguments"]
        items.append(
            {
                "id": f"fc_{name}_{number}",
                "type": "function_call",
                "call_id": call["id"],
                "name": function["name"],
                "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False),
                "status": "completed",
            }
        )
    return items


def _message(where: str, item: dict[str, Any], ignored: Ignored) -> dict[str, Any]:
    role = item.get("role")
    if role not in ("system", "developer", "user", "assistant"):
        raise RequestError(
            f"{where}.role is {str(role)[:80]!r}; allowed: system, developer, user, assistant", param=f"{where}.role"
        )
    return {"role": role, "content": _text(f"{where}.content", item.get("content"), ignored)}


def _output(where: str, item: dict[str, Any], ignored: Ignored) -> dict[str, Any]:
    call = item.get("call_id")
    if not isinstance(call, str) or not call:
        raise RequestError(
            f"{where}.call_id is missing; it names the call whose output this is", param=f"{where}.call_id"
        )
    return {"role": "tool", "tool_call_id": call, "content": _text(f"{where}.output", item.get("output"), ignored)}


def _thought(where: str, item: dict[str, Any]) -> str:
    """The text of a reasoning item; what is encrypted cannot be read."""
    parts = item.get("content") or []
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise RequestError(f"{where}.content takes a list of parts", param=f"{where}.content")
    return "\n".join(str(part.get("text") or "") for part in parts)


def _text(where: str, content: Any, ignored: Ignored) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where} takes a string or a list of text parts", param=where)
    texts = []
    for position, part in enumerate(content):
        at = f"{where}[{position}]"
        text = part.get("text") if isinstance(part, dict) and part.get("type") in _TEXT_PARTS else None
        if not isinstance(text, str):
            raise _unsupported(
                f"{at} is not a text part; this model reads text only: {{'type': 'input_text', 'text': '...'}}", at
            )
        for name in part.keys() - _PART_FIELDS:
            ignored.note(f"{at}.{name}")
        texts.append({"type": "text", "text": text})
    return texts


def _unsupported(message: str, param: str) -> RequestError:
    return RequestError(message, code="unsupported_parameter", param=param)
