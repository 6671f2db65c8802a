"""Finds the request that kills engines, without giving up one that only stood beside it.

Draws and sums do not depend on chance, so what kills stands at one place of a text: a request that kills is alive at
two deaths in a row and has got nothing between them. Such requests are suspects, and so are those that were alive at a
few more. Each is tried alone, those first that have not got on; who gets on is cleared, and when all are, everyone goes
on together. Who was alone in two engines that died at the same operator of their work, and got nothing, has killed
them. Signals from outside do not come at the same operator twice. It knows requests and deaths, not processes.
"""

from __future__ import annotations

from collections.abc import Iterable

from puna.engine.resumable import Resumable

SUSPECT_DEATHS = 2  # the last of them without a token since the one before
SUSPECT_ANYWAY_DEATHS = 5
ALIKE_DEATHS = 2
VAIN_DEATHS = 6  # wherever they were
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

    def note_death(self, alive: Iterable[tuple[Resumable, int]], how: str, place: tuple[int, int]) -> Resumable | None:
        """An engine died with these requests in it, at `place` of its work; it had brought each so many tokens.
        Returns the one that did it, if that is sure by now; it is told `how` the engine ended."""
        stuck: list[Resumable] = []
        moved: list[Resumable] = []
        culprit: Resumable | None = None
        for request, tokens in alive:
            request.deaths += 1
            (moved if tokens else stuck).append(request)
            if request is self.on_trial and _has_killed(request, tokens, place):
                culprit = request
        self._suspect(stuck, SUSPECT_DEATHS)
        self._suspect(moved, SUSPECT_ANYWAY_DEATHS)
        if culprit is not None:
            culprit.culprit = (
                f"this request ended the engine {culprit.deaths} times, at last {culprit.in_vain} times while it ran "
                f"alone (the engine process {how}); it is not tried again"
            )
            for request in list(self._suspects):  # what it did explains the other deaths as well
                self.remove(request)
        return culprit

    def _suspect(self, requests: list[Resumable], deaths: int) -> None:
        self._suspects += [one for one in requests if one.deaths >= deaths and one not in self._suspects]

    def note_progress(self, tokens: int, *, runs: bool) -> None:
        """How far the one on trial has come in it: `tokens` are new, `runs` unless it has ended."""
        if self.on_trial is not None and (tokens >= CLEARED_TOKENS or not runs):
            self.remove(self.on_trial)

    def remove(self, request: Resumable) -> None:
        """Cleared, or gone. Others that it stood in the way of may run."""
        if request in self._suspects:
            self._suspects.remove(request)
            request.deaths = request.in_vain = request.alike = 0
            request.place = None
        if request is self.on_trial:
            self.on_trial = None


def _has_killed(request: Resumable, tokens: int, place: tuple[int, int]) -> bool:
    """Whether another death alone makes it sure."""
    if tokens:
        request.in_vain = request.alike = 0
        request.place = None
        return False
    request.in_vain += 1
    request.alike = request.alike + 1 if place == request.place else 1
    request.place = place
    return request.alike >= ALIKE_DEATHS or request.in_vain >= VAIN_DEATHS
