"""Stored responses, in memory: to be read again, and to go on from (`previous_response_id`).

Bounded by count and bytes; what was not used for the longest time gives way. A response belongs to whoever asked for
it: nobody else finds it. It knows nothing of HTTP, and a restart forgets all of it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import msgspec

from puna.server.responses.shapes import Response

MAX_RESPONSES = 10_000


@dataclass(frozen=True)
class Stored:
    """`conversation`: all messages up to and with the answer, without instructions. `own`: from which of them on they
    were this request's input."""

    response: Response
    conversation: list[dict[str, Any]]
    own: int

    @property
    def input(self) -> list[dict[str, Any]]:
        return self.conversation[self.own : -1]


class ResponseStore:
    """`max_bytes` 0 stores nothing."""

    def __init__(self, max_bytes: int, max_responses: int = MAX_RESPONSES) -> None:
        self.max_bytes = max_bytes
        self.max_responses = max_responses
        self.bytes = 0
        self._stored: OrderedDict[tuple[str, str], tuple[Stored, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stored)

    def put(self, owner: str, stored: Stored) -> None:
        """What is larger than all that may be stored is not."""
        size = len(msgspec.json.encode([stored.response, stored.conversation]))
        if size > self.max_bytes:
            return
        self._stored[owner, stored.response.id] = (stored, size)
        self.bytes += size
        while self.bytes > self.max_bytes or len(self._stored) > self.max_responses:
            _, (_, freed) = self._stored.popitem(last=False)
            self.bytes -= freed

    def get(self, owner: str, name: str) -> Stored | None:
        found = self._stored.get((owner, name))
        if found is None:
            return None
        self._stored.move_to_end((owner, name))
        return found[0]

    def delete(self, owner: str, name: str) -> bool:
        """Whether it was there."""
        found = self._stored.pop((owner, name), None)
        if found is not None:
            self.bytes -= found[1]
        return found is not None
