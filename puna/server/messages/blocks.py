"""Messages of Anthropic's content blocks as messages of a chat: text, thinking, uses of tools and their results.

A message of blocks may become several: the results in a user's message are messages of their own, before what else it
says. It knows the wire's shapes of blocks; what a chat's message may have is checked where all of them are.
"""

from __future__ import annotations

from typing import Any

from puna.server.errors import RequestError
from puna.server.ignored import Ignored

# A prompt is cached as far as it repeats, asked or not; a signature is of no use here.
_BLOCK_FIELDS: dict[str, set[str]] = {
    "text": {"type", "text", "cache_control", "citations"},
    "thinking": {"type", "thinking", "signature", "cache_control"},
    "redacted_thinking": {"type", "data"},
    "tool_use": {"type", "id", "name", "input", "cache_control", "caller"},
    "tool_result": {"type", "tool_use_id", "content", "is_error", "cache_control"},
}
_KINDS_OF = {"assistant": ("text", "thinking", "redacted_thinking", "tool_use"), "user": ("text", "tool_result")}


def chat_messages(where: str, role: str, content: Any, ignored: Ignored) -> list[dict[str, Any]]:
    """RequestError for a block that this server does not read, or that has no place in a message of `role`."""
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for at, block in checked_blocks(where, content, _KINDS_OF.get(role, ("text",)), ignored):
        match block["type"]:
            case "text":
                texts.append(block["text"])
            case "thinking":
                thoughts.append(_string(at, block, "thinking"))
            case "tool_use":
                calls.append(_call(at, block))
            case "tool_result":
                results.append(_result(at, block, ignored))
    said: dict[str, Any] = {"role": role, "content": "\n".join(texts)}
    if thoughts:
        said["reasoning_content"] = "\n".join(thoughts)
    if calls:
        said["tool_calls"] = calls
    return [*results, said] if texts or calls or not results else results


def text_of(where: str, content: Any, ignored: Ignored) -> str:
    """Of a string, or of blocks of text, which are read as one."""
    if isinstance(content, str):
        return content
    return "\n".join(block["text"] for _, block in checked_blocks(where, content, ("text",), ignored))


def checked_blocks(
    where: str, content: Any, kinds: tuple[str, ...], ignored: Ignored
) -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(content, list):
        raise RequestError(f"{where} takes a string or a list of blocks: {', '.join(kinds)}", param=where)
    checked = []
    for position, block in enumerate(content):
        at = f"{where}[{position}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if kind not in kinds or (kind == "text" and not isinstance(block.get("text"), str)):
            raise RequestError(
                f"{at} is of the type {str(kind)[:40]!r}; this server reads here {', '.join(kinds)}, as in "
                "{'type': 'text', 'text': '...'}",
                code="unsupported_parameter",
                param=at,
            )
        for name in block.keys() - _BLOCK_FIELDS[kind]:
            ignored.note(f"{at}.{name}")
        if block.get("citations"):
            ignored.note(f"{at}.citations", "has no effect on a text")
        checked.append((at, block))
    return checked


def _call(at: str, block: dict[str, Any]) -> dict[str, Any]:
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        raise RequestError(f"{at}.input takes an object", param=f"{at}.input")
    function = {"name": _string(at, block, "name"), "arguments": arguments}
    return {"id": _string(at, block, "id"), "type": "function", "function": function}


def _result(at: str, block: dict[str, Any], ignored: Ignored) -> dict[str, Any]:
    text = text_of(f"{at}.content", block.get("content") or "", ignored)
    failed = "Error: " if block.get("is_error") is True else ""
    return {"role": "tool", "tool_call_id": _string(at, block, "tool_use_id"), "content": failed + text}


def _string(at: str, block: dict[str, Any], name: str) -> str:
    value = block.get(name)
    if not isinstance(value, str) or not value:
        raise RequestError(f"{at}.{name} takes a string", param=f"{at}.{name}")
    return value
