"""The file of `--tools`: a JSON list of tools, in OpenAI's shape or of functions alone.

It knows the file; what a tool may be is decided where the server decides it.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import msgspec

from puna.errors import InputError
from puna.models.calls.tool import Tool

MAX_FILE_BYTES = 16 << 20


def read_tools(path: Path) -> list[Tool]:
    """InputError where the file is not there or is no list of tools."""
    from puna.server.ignored import Ignored
    from puna.server.tools import chat_tools

    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", param="--tools") from error
    try:
        entries = msgspec.json.decode(data[:MAX_FILE_BYTES], type=list[dict[str, object]])
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON list of tools: {error}", param="--tools") from None
    tools = [entry if "function" in entry else {"type": "function", "function": entry} for entry in entries]
    given = {"tool_choice": None, "parallel_tool_calls": None, "functions": None, "function_call": None}
    try:
        return list(chat_tools(SimpleNamespace(tools=tools, **given), Ignored(strict=True)).tools)
    except InputError as error:
        raise InputError(f"{path}: {error}", param="--tools") from None
