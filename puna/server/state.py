"""What a server keeps across restarts: uploaded files, batches, and the answers that batches have by now.

    FOLDER/state.sqlite    tables `files`, `batches` and `answers`; one row a line of a batch that was answered;
                           `responses` is ResponseStore's
    FOLDER/files/ID        the files' bytes
    FOLDER/lock            held by the one server that uses the folder

It knows bytes and rows; what a batch means is in batches.py. Calls block for a moment: use them from a thread.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from puna.errors import InputError
from puna.server.database import Database, StateError

_TABLES = (
    "CREATE TABLE IF NOT EXISTS files "
    "(id TEXT PRIMARY KEY, tenant TEXT, filename TEXT, purpose TEXT, bytes INTEGER, created_at INTEGER)",
    "CREATE TABLE IF NOT EXISTS batches (id TEXT PRIMARY KEY, tenant TEXT, created_at INTEGER, body BLOB)",
    "CREATE TABLE IF NOT EXISTS answers "
    "(batch TEXT, line INTEGER, good INTEGER, body BLOB, PRIMARY KEY (batch, line)) WITHOUT ROWID",
)


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
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it has what clients asked, and their answers
            (folder / "files").mkdir(exist_ok=True)
            self._lock = (folder / "lock").open("w")
        except OSError as error:
            raise StateError(f"{folder} cannot hold files and batches: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise StateError(f"another server uses {folder}; give this one its own with --state") from None
        try:
            self.database = Database(folder / "state.sqlite")
            for table in _TABLES:
                self.database.run(table)
        except StateError:
            self._lock.close()
            raise

    def close(self) -> None:
        self.database.close()
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
            self.database.run("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)", row)
        except BaseException as error:
            part.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise StateError(f"the file cannot be kept: {error.strerror}") from error
            raise

    def path(self, file_id: str) -> Path:
        return self.folder / "files" / file_id

    def file(self, tenant: str, file_id: str) -> StoredFile | None:
        rows = self.database.run("SELECT * FROM files WHERE id = ? AND tenant = ?", (file_id, tenant))
        return StoredFile(*rows[0]) if rows else None

    def files(self, tenant: str) -> list[StoredFile]:
        """Newest first."""
        rows = self.database.run("SELECT * FROM files WHERE tenant = ? ORDER BY created_at DESC, rowid DESC", (tenant,))
        return [StoredFile(*row) for row in rows]

    def delete_file(self, file_id: str) -> None:
        self.database.run("DELETE FROM files WHERE id = ?", (file_id,))
        self.path(file_id).unlink(missing_ok=True)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.folder).free

    # --- batches ---

    def save_batch(self, batch_id: str, tenant: str, created_at: int, body: bytes) -> None:
        self.database.run("INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?)", (batch_id, tenant, created_at, body))

    def batch(self, tenant: str, batch_id: str) -> bytes | None:
        rows = self.database.run("SELECT body FROM batches WHERE id = ? AND tenant = ?", (batch_id, tenant))
        return rows[0][0] if rows else None

    def batches(self, tenant: str | None = None) -> list[bytes]:
        """Newest first; of all tenants where none is named."""
        where, values = ("", ()) if tenant is None else (" WHERE tenant = ?", (tenant,))
        return [body for (body,) in self.database.run(f"SELECT body FROM batches{where} ORDER BY rowid DESC", values)]

    def add_answer(self, batch_id: str, line: int, good: bool, body: bytes) -> None:
        self.database.run("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", (batch_id, line, good, body))

    def answered(self, batch_id: str) -> dict[int, bool]:
        """Which lines have an answer, and whether it is a good one."""
        rows = self.database.run("SELECT line, good FROM answers WHERE batch = ?", (batch_id,))
        return {line: bool(good) for line, good in rows}

    def answers(self, batch_id: str, good: bool) -> Iterator[bytes]:
        """In the order of their lines, a thousand at a time."""
        last = -1
        while rows := self.database.run(
            "SELECT line, body FROM answers WHERE batch = ? AND good = ? AND line > ? ORDER BY line LIMIT 1000",
            (batch_id, good, last),
        ):
            yield from (body for _, body in rows)
            last = rows[-1][0]

    def drop_answers(self, batch_id: str) -> None:
        self.database.run("DELETE FROM answers WHERE batch = ?", (batch_id,))


def check_name(filename: str) -> str:
    """A name to show again; no path of it is ever used."""
    name = filename.replace("\\", "/").rsplit("/", 1)[-1]
    if not name or len(name) > 255 or not name.isprintable():
        raise InputError(f"the file's name is {filename[:80]!r}; give it a printable one of up to 255 characters")
    return name
