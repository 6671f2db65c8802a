"""A conversation that a person has in the terminal: its messages, what can be undone, and how it is kept in a file.

It knows no model and computes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from puna.errors import InputError

FORMAT = "puna-conversation-1"
MAX_FILE_BYTES = 64 << 20


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """`tool_calls`, of an answer, are in OpenAI's shape; `tool_call_id` and `name`, of a result, say of which call."""

    role: str
    content: str
    tool_calls: list[dict[str, Any]] = []
    tool_call_id: str | None = None
    name: str | None = None


class SavedConversation(msgspec.Struct, frozen=True):
    """The file: JSON. `format` names the schema and its version."""

    format: str
    model: str
    messages: list[Message]


@dataclass
class Conversation:
    """Messages in order: maybe a system message, then questions and answers by turns."""

    messages: list[Message] = field(default_factory=list)

    def set_system(self, text: str) -> None:
        """An empty text takes the system message out."""
        rest = [m for m in self.messages if m.role != "system"]
        self.messages = [Message("system", text), *rest] if text else rest

    def ask(self, question: str) -> None:
        self.messages.append(Message("user", question))

    def answered(self, text: str, calls: Sequence[tuple[str, str]] = ()) -> None:
        """`calls`: names and arguments of the tools that the answer calls."""
        begun = len(self.messages)
        shapes = [
            {
                "id": f"call_{begun}_{number}",
                "type": "function",
                "function": {"name": name, "arguments": msgspec.json.decode(arguments)},
            }
            for number, (name, arguments) in enumerate(calls)
        ]
        self.messages.append(Message("assistant", text, shapes))

    def open_calls(self) -> list[dict[str, Any]]:
        """Calls of the last answer that have no result yet."""
        answer = next((place for place in reversed(range(len(self.messages))) if self.messages[place].tool_calls), None)
        if answer is None:
            return []
        done = {m.tool_call_id for m in self.messages[answer:]}
        return [call for call in self.messages[answer].tool_calls if call["id"] not in done]

    def returned(self, call: dict[str, Any], text: str) -> None:
        """The result of a call."""
        self.messages.append(Message("tool", text, tool_call_id=call["id"], name=call["function"]["name"]))

    def undo(self) -> str | None:
        """Takes the last question back, with its answer if it has one, and gives the question; None without one."""
        while self.messages and self.messages[-1].role != "system":
            message = self.messages.pop()
            if message.role == "user":
                return message.content
        return None

    def reset(self) -> None:
        """Forgets all but the system message."""
        self.messages = [m for m in self.messages if m.role == "system"]

    def as_dicts(self) -> list[dict[str, Any]]:
        dicts: list[dict[str, Any]] = msgspec.to_builtins(self.messages)
        return dicts

    def save(self, path: Path, model: str) -> None:
        document = msgspec.json.encode(SavedConversation(FORMAT, model, self.messages))
        try:
            path.write_bytes(msgspec.json.format(document, indent=2) + b"\n")
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error

    def load(self, path: Path) -> None:
        """Replaces the messages. InputError, and nothing changed, where the file is not such a conversation."""
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        try:
            saved = msgspec.json.decode(data, type=SavedConversation)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not a conversation that /save wrote: {error}") from None
        if saved.format != FORMAT:
            raise InputError(f"{path} has the format {saved.format[:40]!r}; this version reads {FORMAT!r}")
        wrong = [m.role for m in saved.messages if m.role not in ("system", "user", "assistant", "tool")]
        if wrong:
            raise InputError(f"{path} has a message of role {wrong[0][:40]!r}; known: system, user, assistant, tool")
        self.messages = list(saved.messages)
