"""Tools, past calls and their results in the shape that a chat template reads.

In: OpenAI's messages, a call's arguments an object where they are one. Most templates want just that. One that knows no
tools gets what is said here instead: tools as a block in the system message, calls as the JSON that the block asks for,
results as what the user says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from puna.models.calls.tool import Tool
from puna.models.template import ChatTemplate

Message = dict[str, Any]

_BLOCK = """\
You can call functions. These are the functions, one JSON object a line:
{tools}

To call a function, answer with nothing but JSON: {{"name": "<function>", "arguments": {{...}}}}
To call several, write one such object a line. If no function helps, answer in plain words."""


def for_template(
    template: ChatTemplate, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """The messages and the tools to render."""
    if not template.reads("tools"):
        return _without_tools(messages, tools), None
    fitted = [_fitted(template, message) for message in messages]
    return fitted, [tool.shape for tool in tools] or None


def tool_block(tools: Sequence[Tool]) -> str:
    """What a model whose template knows no tools is told of them."""
    return _BLOCK.format(tools="\n".join(json.dumps(tool.shape["function"], ensure_ascii=False) for tool in tools))


def _fitted(template: ChatTemplate, message: Mapping[str, Any]) -> Message:
    fitted = dict(message)
    if calls := message.get("tool_calls"):
        fitted["tool_calls"] = [_fitted_call(template, call) for call in calls]
    if template.wants_short_ids and message.get("tool_call_id"):
        fitted["tool_call_id"] = _short(message["tool_call_id"])
    return fitted


def _fitted_call(template: ChatTemplate, call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    if template.wants_argument_text and not isinstance(function["arguments"], str):
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    name = str(call.get("id", ""))
    return {**call, "id": _short(name) if template.wants_short_ids else name, "function": function}


def _short(name: str) -> str:
    """Nine letters and digits that stand for an id."""
    if len(name) == 9 and name.isalnum() and name.isascii():
        return name
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:9]


def _without_tools(messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> list[Message]:
    said: list[Message] = []
    was_result = False
    for message in messages:
        plain = _plain(message)
        is_result = message["role"] == "tool"
        if said and was_result and plain["role"] == "user":
            said[-1] = {**said[-1], "content": f"{said[-1]['content']}\n{_text(plain['content'])}"}
        else:
            said.append(plain)
        was_result = is_result or (was_result and plain["role"] == "user" and said[-1] is not plain)
    return _told(said, tools) if tools else said


def _told(messages: list[Message], tools: Sequence[Tool]) -> list[Message]:
    """With the block at the end of the first system message, or in one of its own."""
    block = tool_block(tools)
    if messages and messages[0]["role"] == "system":
        first = messages[0]
        return [{**first, "content": f"{_text(first['content'])}\n\n{block}"}, *messages[1:]]
    return [{"role": "system", "content": block}, *messages]


def _plain(message: Mapping[str, Any]) -> Message:
    if message["role"] == "tool":
        name = message.get("name") or "the function"
        return {"role": "user", "content": f"Result of {name}: {_text(message.get('content'))}"}
    kept = {key: value for key, value in message.items() if key not in ("tool_calls", "reasoning_content")}
    if calls := message.get("tool_calls"):
        lines = [
            json.dumps({"name": c["function"]["name"], "arguments": c["function"]["arguments"]}, ensure_ascii=False)
            for c in calls
        ]
        kept["content"] = "\n".join([*([text] if (text := _text(message.get("content"))) else []), *lines])
    return kept


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content)
    return content or ""
