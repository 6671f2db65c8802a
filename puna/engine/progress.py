"""A progress bar for offline generation: on a terminal, and only if it takes longer than two seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SHOW_AFTER_S = 2.0


class GenerationProgress:
    """Counts finished requests of `total` and generated tokens. `shown` False keeps it silent."""

    def __init__(self, total: int, *, shown: bool) -> None:
        self._total = total
        self._shown = shown and sys.stderr is not None and sys.stderr.isatty()
        self._started = time.monotonic()
        self._done = 0
        self._tokens = 0
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> GenerationProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def note(self, tokens: int, *, finished: bool) -> None:
        self._tokens += tokens
        self._done += finished
        elapsed_s = time.monotonic() - self._started
        if not self._shown or elapsed_s < SHOW_AFTER_S:
            return
        if self._bar is None:
            self._bar, self._task = _new_bar(self._total)
        if self._task is not None:
            rate = f"{self._tokens / elapsed_s:.0f} tokens/s"
            self._bar.update(self._task, completed=self._done, rate=rate)


def _new_bar(total: int) -> tuple[Progress, TaskID]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.start()
    return bar, bar.add_task("generating", total=total, rate="")
