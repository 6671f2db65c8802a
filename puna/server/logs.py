"""How log lines look and where they go: JSON or text on standard error, written by a thread of their own.

A reader of the log that stands still must not stop the server: lines wait in a queue of bounded length, and those that
find it full are counted and left out. Fields beyond the message come in a record's `fields`. Knows no requests.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import msgspec

LogFormat = Literal["text", "json"]
QUEUED_LINES = 10_000
CLOSE_S = 1.0
QUIET_LIBRARIES = ("uvicorn", "asyncio", "opentelemetry")  # they speak of warnings and worse only


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    found: dict[str, Any] = getattr(record, "fields", {})
    return found


class JsonLines(logging.Formatter):
    """One object a line: time, level, logger, message, then the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class TextLines(logging.Formatter):
    """A line for people: fields as name=value. What came from a client cannot begin a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={_shown(value)}" for name, value in fields_of(record).items())
        line = f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}{fields}"
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


class LogWriter(logging.Handler):
    """Hands lines to a thread that writes them to `stream`."""

    def __init__(self, stream: TextIO, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(QUEUED_LINES)
        self._lost = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
            if self._lost:
                self._lines.put_nowait(f"{self._lost} lines of the log were lost: nobody read it")
                self._lost = 0
            self._lines.put_nowait(line)
        except queue.Full:
            self._lost += 1
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Writes what waits, if that does not take long."""
        try:
            self._lines.put_nowait(None)
            self._thread.join(CLOSE_S)
        except queue.Full:
            pass
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line + "\n")
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):  # nobody reads it any more
                return


def start_logging(form: LogFormat, level: str) -> LogWriter:
    """All of the process' logging, from now on. Whoever started it closes what is returned."""
    writer = LogWriter(sys.stderr, JsonLines() if form == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [writer]
    root.setLevel(level.upper())
    for name in QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    return writer


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value.isalnum() else msgspec.json.encode(value, enc_hook=str).decode()
