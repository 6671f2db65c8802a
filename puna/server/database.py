"""One SQLite database and the lock before it: in a file that outlives the server, or in memory where there is none.

It knows statements and how they fail; what the tables mean is for those who own them. Calls block for a moment: use
them from a thread.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from puna.errors import PunaError


class StateError(PunaError):
    """What is to be kept cannot be, or cannot be read again."""


class Database:
    """`path` None: in memory. StateError where the file is no database, or a damaged one.

    Every statement is a transaction of its own: after a crash it has happened or it has not. What is deleted is
    overwritten.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._mutex = threading.Lock()
        try:
            self._connection = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA secure_delete=ON")
            ((said,),) = self._connection.execute("PRAGMA quick_check(1)").fetchall()
            if said != "ok":
                self._connection.close()
                raise sqlite3.DatabaseError(" ".join(said.split()))
        except sqlite3.Error as error:
            raise StateError(f"{path} cannot be used: {error}; move it to begin anew") from error

    def run(self, statement: str, values: Iterable[Any] = ()) -> list[Any]:
        """The rows. StateError where the disk is full, say."""
        with self._mutex:
            try:
                return self._connection.execute(statement, tuple(values)).fetchall()
            except sqlite3.Error as error:
                raise StateError(f"{self.path or 'memory'}: {error}") from error

    def forget(self) -> None:
        """Takes what was deleted out of the file that new rows are first written to as well."""
        self.run("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        with self._mutex:
            self._connection.close()
