"""Finds the request that kills engines, without giving up one that only stood beside it.

Requests that were alive at two deaths in a row are suspects. Each is tried alone, those first that have not got on
since the death before; who gets on is cleared, and when all are, everyone goes on together. An engine that dies twice
under a suspect that is alone in it and gets nothing has been killed by it: draws and sums do not depend on chance, so
what kills stands at one place of a text. One such death alone may come from outside. It knows requests and deaths, not
processes.
"""

from __future__ import annotations

from collections.abc import Iterable

from puna.engine.resumable import Resumable

SUSPECT_DEATHS = 2
DEAD_ENDS = 2
CLEARED_TOKENS = 8  # new ones, in a trial


class Trials:
    """Who is suspected, and who is on trial: then nobody else may run. Suspects run in no other way."""

    def __init__(self) -> None:
        self.on_trial: Resumable | None = None
        self._suspects: list[Resumable] = []

    def may_run(self, request: Resumable) -> bool:
        return request is self.on_trial or (self.on_trial is None and request not in self._suspects)

    def choose(self) -> Resumable | None:
        """Puts the next suspect on trial, if nobody is and one waits for it. One whose reader still has old tokens to
        take does not wait, and holds nobody up."""
        if self.on_trial is not None:
            return None
        self.on_trial = next((suspect for suspect in self._suspects if suspect.waits), None)
        return self.on_trial

    def note_death(self, alive: Iterable[tuple[Resumable, int]], how: str) -> Resumable | None:
        """An engine died with these requests in it; it had brought each so many tokens. Returns the one that did it,
        if that is sure by now; it is told `how` the engine ended."""
        stuck: list[Resumable] = []
        moved: list[Resumable] = []
        culprit: Resumable | None = None
        for request, tokens in alive:
            request.deaths += 1
            (moved if tokens else stuck).append(request)
            if request is self.on_trial:
                request.dead_ends = 0 if tokens else request.dead_ends + 1
                if request.dead_ends >= DEAD_ENDS:
                    culprit = request
        for request in (*stuck, *moved):
            if request.deaths >= SUSPECT_DEATHS and request not in self._suspects:
                self._suspects.append(request)
        if culprit is not None:
            culprit.culprit = (
                f"this request ended the engine {culprit.deaths} times, at last {DEAD_ENDS} times while it ran alone "
                f"(the engine process {how}); it is not tried again"
            )
            for request in list(self._suspects):  # what it did explains the other deaths as well
                self.remove(request)
        return culprit

    def note_progress(self, tokens: int, *, runs: bool) -> None:
        """How far the one on trial has come in it: `tokens` are new, `runs` unless it has ended."""
        if self.on_trial is not None and (tokens >= CLEARED_TOKENS or not runs):
            self.remove(self.on_trial)

    def remove(self, request: Resumable) -> None:
        """Cleared, or gone. Others that it stood in the way of may run."""
        if request in self._suspects:
            self._suspects.remove(request)
            request.deaths = request.dead_ends = 0
        if request is self.on_trial:
            self.on_trial = None
