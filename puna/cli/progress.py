"""What a person sees while waiting: a bar for a model that is being pulled, a line while one is loaded.

On a terminal both vanish when they are done; elsewhere a pull is one line and loading is silent.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@contextmanager
def loading(model: str) -> Iterator[None]:
    """Says that `model` is being loaded, while it is."""
    shown = sys.stderr.isatty()
    if shown:
        print(f"\x1b[2mloading {model} ...\x1b[0m", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class PullProgress:
    """A context manager, and the callback that `puna.models.names.resolve` takes: bytes done, bytes in all, what.
    Nothing is shown unless something is pulled."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._announced = False

    def __call__(self, done_bytes: int, total_bytes: int | None, what: str) -> None:
        if not sys.stderr.isatty():
            if not self._announced:
                self._announced = True
                print(f"{what} ...", file=sys.stderr)
            return
        if self._bar is None or self._task is None:
            self._bar, self._task = _bar(what)
        self._bar.update(self._task, completed=done_bytes, total=total_bytes or None, description=what)

    def __enter__(self) -> PullProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()


def _bar(what: str) -> tuple[Progress, TaskID]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.start()
    return bar, bar.add_task(what, total=None)
