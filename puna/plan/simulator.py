"""The real scheduler under a virtual clock: arrivals come, and every planned step takes what a model of time says.

The loop is the engine's without a device: `schedule`, run (time passes), `commit`, fork what has several samples,
append what was drawn, finish what is whole. The scheduler, its policy and its memory are the very objects that serve;
they cannot tell the difference. Knows no workload and no figures: watches see every step, outcomes say what became of
each request.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Protocol

from puna.errors import PunaError
from puna.plan.simulated import Outcome, SimulatedRequest
from puna.plan.step_time import StepTime
from puna.sched.scheduler import Scheduler
from puna.sched.sequence import Sequence, Status
from puna.sched.step import ScheduledRow, ScheduledStep


@dataclass(frozen=True)
class Moment:
    """A step that has just been computed: its tokens are in the pool, what it drew is not known yet. `ended` requests
    had ended before."""

    begun_s: float
    seconds: float
    step: ScheduledStep
    scheduler: Scheduler
    ended: int


class Watch(Protocol):
    """Sees steps; must not change anything."""

    def on_step(self, moment: Moment) -> None: ...


@dataclass
class _Live:
    outcome: Outcome
    sequences: dict[int, int]  # sequence id -> which sample it is


class Simulator:
    """One simulation, of a scheduler that has served nobody yet."""

    def __init__(self, scheduler: Scheduler, step_time: StepTime, watches: SequenceOf[Watch] = ()) -> None:
        self._scheduler = scheduler
        self._step_time = step_time
        self._watches = watches
        self._live: dict[int, _Live] = {}  # sequence id -> its request; those of one request share the value
        self._next_id = 0
        self._ended = 0
        self.now = 0.0

    def run(self, requests: Iterable[SimulatedRequest]) -> list[Outcome]:
        """Until all have ended; outcomes in the order in which requests came."""
        coming = deque(sorted(requests, key=lambda request: request.at_s))
        outcomes: list[Outcome] = []
        while coming or self._live:
            while coming and coming[0].at_s <= self.now:
                outcomes.append(self._arrive(coming.popleft()))
            if not self._live:
                self.now = max(self.now, coming[0].at_s) if coming else self.now
            elif not self._step() and not self._jump(coming):
                raise RuntimeError(f"{len(self._live)} sequences live, none gets on, and nobody comes any more")
        return outcomes

    def _arrive(self, request: SimulatedRequest) -> Outcome:
        outcome = Outcome(request)
        sequence = self._sequence(request, request.prompt(), request.samples)
        try:
            self._scheduler.add(sequence, self.now)
        except PunaError as error:
            outcome.refused = str(error)
            self._ended += 1
            return outcome
        self._live[sequence.sequence_id] = _Live(outcome, {sequence.sequence_id: 0})
        return outcome

    def _sequence(self, request: SimulatedRequest, tokens: array[int], seats: int) -> Sequence:
        self._next_id += 1
        return Sequence(
            sequence_id=self._next_id,
            tokens=tokens,
            prompt_len=request.prompt_len,
            max_total_len=request.prompt_len + request.output_len,
            arrival=request.at_s,
            priority=request.priority,
            tenant=request.tenant,
            seats=seats,
        )

    def _step(self) -> bool:
        """False where nobody got on."""
        step = self._scheduler.schedule(self.now)
        for sequence in (*step.shed, *step.impossible):
            self._leave(sequence, "given up while it waited")
        if not step.rows:
            self.now += self._step_time.seconds(step) if step.moves else 0.0
            return bool(step.shed or step.impossible or step.preempted or step.moves)
        seconds = self._step_time.seconds(step)
        moment = Moment(self.now, seconds, step, self._scheduler, self._ended)
        self.now += seconds
        self._scheduler.commit(step, self.now)
        for watch in self._watches:
            watch.on_step(moment)
        for row in step.rows:
            if row.completes:
                self._draw(row)
        return True

    def _jump(self, coming: deque[SimulatedRequest]) -> bool:
        """To the next arrival, while those that live wait for something else than a step."""
        if not coming:
            return False
        self.now = max(self.now, coming[0].at_s)
        return True

    def _draw(self, row: ScheduledRow) -> None:
        parent = row.sequence
        live = self._live[parent.sequence_id]
        outcome = live.outcome
        if outcome.first_s is None:
            outcome.first_s, outcome.cached_len = self.now, parent.cached_len
        family = [parent]
        while parent.seats > 1:
            child = self._sequence(outcome.request, array("i", parent.tokens), 1)
            self._scheduler.fork(parent, child, self.now)
            self._live[child.sequence_id] = live
            live.sequences[child.sequence_id] = len(live.sequences)
            family.append(child)
        for sequence in family:
            token = outcome.request.drawn(live.sequences[sequence.sequence_id], len(sequence.tokens))
            self._scheduler.append(sequence, token, self.now)
            if len(sequence.tokens) == sequence.max_total_len:
                self._scheduler.finish(sequence, self.now)
                self._leave(sequence, None)

    def _leave(self, sequence: Sequence, refused: str | None) -> None:
        assert sequence.status is Status.FINISHED
        live = self._live.pop(sequence.sequence_id)
        live.outcome.preemptions += sequence.preemptions
        live.outcome.refused = live.outcome.refused or refused
        del live.sequences[sequence.sequence_id]
        if not live.sequences:
            live.outcome.done_s = None if live.outcome.refused else self.now
            self._ended += 1
