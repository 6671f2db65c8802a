"""Stored responses: to be read again, and to go on from (`previous_response_id`). They outlive the server where its
database does.

Bounded by count and bytes; what was not used for the longest time gives way. A response belongs to whoever asked for
it: nobody else finds it. It knows nothing of HTTP. Calls block for a moment: use them from a thread.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import msgspec

from puna.server.database import Database, StateError
from puna.server.responses.shapes import Response

MAX_RESPONSES = 10_000
# `used`: rows in the order in which they were asked for last.
_TABLES = (
    "CREATE TABLE IF NOT EXISTS responses "
    "(tenant TEXT, id TEXT, used INTEGER, bytes INTEGER, body BLOB, PRIMARY KEY (tenant, id))",
    "CREATE INDEX IF NOT EXISTS responses_by_use ON responses (used, bytes)",
)

log = logging.getLogger("puna.server")


class Stored(msgspec.Struct, frozen=True):
    """`conversation`: all messages up to and with the answer, without instructions. `own`: from which of them on they
    were this request's input."""

    response: Response
    conversation: list[dict[str, Any]]
    own: int

    @property
    def input(self) -> list[dict[str, Any]]:
        return self.conversation[self.own : -1]


class ResponseStore:
    """`max_bytes` 0 stores nothing. What `database` holds beyond the bounds gives way at once."""

    def __init__(self, database: Database, max_bytes: int, max_responses: int = MAX_RESPONSES) -> None:
        self.max_bytes = max_bytes
        self.max_responses = max_responses
        self._database = database
        self._mutex = threading.Lock()  # of the figures here, and between statements that belong together
        for table in _TABLES:
            database.run(table)
        ((self._count, self.bytes, self._uses),) = database.run(
            "SELECT count(*), coalesce(sum(bytes), 0), coalesce(max(used), 0) FROM responses"
        )
        self._make_room()

    def __len__(self) -> int:
        return int(self._count)

    @property
    def outlives(self) -> bool:
        """Whether what is stored is still there after a restart."""
        return self._database.path is not None

    def put(self, owner: str, stored: Stored) -> bool:
        """Whether it is stored: what is larger than all that may be is not. StateError where it cannot be written."""
        body = msgspec.json.encode(stored)
        if len(body) > self.max_bytes:
            return False
        with self._mutex:
            row = (owner, stored.response.id, self._next_use(), len(body), body)
            self._database.run("INSERT INTO responses VALUES (?, ?, ?, ?, ?)", row)
            self._count += 1
            self.bytes += len(body)
            self._make_room()
        return True

    def get(self, owner: str, name: str) -> Stored | None:
        rows = self._database.run("SELECT body FROM responses WHERE tenant = ? AND id = ?", (owner, name))
        if not rows:
            return None
        try:
            stored = msgspec.json.decode(rows[0][0], type=Stored)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("the stored response %s cannot be read and is left out: %s", name, error)
            self.delete(owner, name)
            return None
        with self._mutex:
            use = self._next_use()
        try:
            self._database.run("UPDATE responses SET used = ? WHERE tenant = ? AND id = ?", (use, owner, name))
        except StateError as error:  # a full disk: it can be read even so
            log.warning("the use of the stored response %s is not written down: %s", name, error)
        return stored

    def delete(self, owner: str, name: str) -> bool:
        """Whether it was there. Its text is in no file afterwards."""
        with self._mutex:
            rows = self._database.run("SELECT rowid, bytes FROM responses WHERE tenant = ? AND id = ?", (owner, name))
            self._remove(rows)
        if rows:
            self._database.forget()
        return bool(rows)

    def _make_room(self) -> None:
        while self._count and (self.bytes > self.max_bytes or self._count > self.max_responses):
            self._remove(self._database.run("SELECT rowid, bytes FROM responses ORDER BY used LIMIT 1"))

    def _remove(self, rows: list[Any]) -> None:
        for row, size in rows:
            self._database.run("DELETE FROM responses WHERE rowid = ?", (row,))
            self._count -= 1
            self.bytes -= size

    def _next_use(self) -> int:
        self._uses += 1
        return int(self._uses)
