"""What a server keeps across restarts: uploaded files, batches, and the answers that batches have by now.

    FOLDER/state.sqlite    tables `files`, `batches` and `answers`; one row a line of a batch that was answered
    FOLDER/files/ID        the files' bytes
    FOLDER/lock            held by the one server that uses the folder

It knows bytes and rows; what a batch means is in batches.py. Calls block for a moment: use them from a thread.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec

from puna.errors import InputError, PunaError

_TABLES = """
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY, tenant TEXT, filename TEXT, purpose TEXT, bytes INTEGER, created_at INTEGER
);
CREATE TABLE IF NOT EXISTS batches (id TEXT PRIMARY KEY, tenant TEXT, created_at INTEGER, body BLOB);
CREATE TABLE IF NOT EXISTS answers (
    batch TEXT, line INTEGER, good INTEGER, body BLOB, PRIMARY KEY (batch, line)
) WITHOUT ROWID;
"""


class StateError(PunaError):
    """The folder cannot be used."""


class StoredFile(msgspec.Struct, frozen=True):
    id: str
    tenant: str
    filename: str
    purpose: str
    bytes: int
    created_at: int


class State:
    """Opened by one process at a time. StateError where another has it, or where it cannot be written to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mutex = threading.Lock()
        try:
            (folder / "files").mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("w")
        except OSError as error:
            raise StateError(f"{folder} cannot hold files and batches: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise StateError(f"another server uses {folder}; give this one its own with --state") from None
        try:
            self._db = sqlite3.connect(folder / "state.sqlite", check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.executescript(_TABLES)
        except sqlite3.Error as error:
            self._lock.close()
            raise StateError(f"{folder / 'state.sqlite'} cannot be used: {error}; move it to begin anew") from error

    def close(self) -> None:
        with self._mutex:
            self._db.close()
            self._lock.close()

    # --- files ---

    @contextmanager
    def new_file(self, tenant: str, filename: str, purpose: str) -> Iterator[tuple[str, IO[bytes]]]:
        """An id and a file to write to. It exists when the block ends well; else nothing is left."""
        file_id = f"file-{secrets.token_hex(12)}"
        target = self.path(file_id)
        part = target.with_suffix(".part")
        try:
            with part.open("wb") as opened:
                yield file_id, opened
                opened.flush()
                os.fsync(opened.fileno())
                size = opened.tell()
            part.replace(target)
            row = (file_id, tenant, filename, purpose, size, int(time.time()))
            self._run("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)", row)
        except BaseException as error:
            part.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise StateError(f"the file cannot be kept: {error.strerror}") from error
            raise

    def path(self, file_id: str) -> Path:
        return self.folder / "files" / file_id

    def file(self, tenant: str, file_id: str) -> StoredFile | None:
        rows = self._run("SELECT * FROM files WHERE id = ? AND tenant = ?", (file_id, tenant))
        return StoredFile(*rows[0]) if rows else None

    def files(self, tenant: str) -> list[StoredFile]:
        """Newest first."""
        rows = self._run("SELECT * FROM files WHERE tenant = ? ORDER BY created_at DESC, rowid DESC", (tenant,))
        return [StoredFile(*row) for row in rows]

    def delete_file(self, file_id: str) -> None:
        self._run("DELETE FROM files WHERE id = ?", (file_id,))
        self.path(file_id).unlink(missing_ok=True)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.folder).free

    # --- batches ---

    def save_batch(self, batch_id: str, tenant: str, created_at: int, body: bytes) -> None:
        self._run("INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?)", (batch_id, tenant, created_at, body))

    def batch(self, tenant: str, batch_id: str) -> bytes | None:
        rows = self._run("SELECT body FROM batches WHERE id = ? AND tenant = ?", (batch_id, tenant))
        return rows[0][0] if rows else None

    def batches(self, tenant: str | None = None) -> list[bytes]:
        """Newest first; of all tenants where none is named."""
        where, values = ("", ()) if tenant is None else (" WHERE tenant = ?", (tenant,))
        return [body for (body,) in self._run(f"SELECT body FROM batches{where} ORDER BY rowid DESC", values)]

    def add_answer(self, batch_id: str, line: int, good: bool, body: bytes) -> None:
        self._run("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", (batch_id, line, good, body))

    def answered(self, batch_id: str) -> dict[int, bool]:
        """Which lines have an answer, and whether it is a good one."""
        rows = self._run("SELECT line, good FROM answers WHERE batch = ?", (batch_id,))
        return {line: bool(good) for line, good in rows}

    def answers(self, batch_id: str, good: bool) -> Iterator[bytes]:
        """In the order of their lines, a thousand at a time."""
        last = -1
        while rows := self._run(
            "SELECT line, body FROM answers WHERE batch = ? AND good = ? AND line > ? ORDER BY line LIMIT 1000",
            (batch_id, good, last),
        ):
            yield from (body for _, body in rows)
            last = rows[-1][0]

    def drop_answers(self, batch_id: str) -> None:
        self._run("DELETE FROM answers WHERE batch = ?", (batch_id,))

    def _run(self, statement: str, values: Iterable[Any]) -> list[Any]:
        with self._mutex:
            try:
                return self._db.execute(statement, tuple(values)).fetchall()
            except sqlite3.Error as error:
                raise StateError(f"{self.folder / 'state.sqlite'}: {error}") from error


def check_name(filename: str) -> str:
    """A name to show again; no path of it is ever used."""
    name = filename.replace("\\", "/").rsplit("/", 1)[-1]
    if not name or len(name) > 255 or not name.isprintable():
        raise InputError(f"the file's name is {filename[:80]!r}; give it a printable one of up to 255 characters")
    return name
