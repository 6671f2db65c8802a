"""Moves the sequences of beam searches about: what steps brought goes into the searches, and they become the new beams.

A beam that is dropped becomes a fork of one that goes on, in its own seat: blocks are shared, and only the last, partly
filled one is copied when it is written to. Knows scheduler, runner and who is alive; nothing of scores.
"""

from __future__ import annotations

from puna.engine.beam_group import BeamGroup
from puna.engine.entry import StreamMaker
from puna.engine.live import LiveRequest, Sample, Stream
from puna.engine.params import SampleUpdate
from puna.engine.runner import PreparedStep, Runner
from puna.engine.stats import EngineCounters
from puna.kernels.batch import StepOutput
from puna.sched.scheduler import Scheduler


class BeamKeeper:
    """Carries the beam searches of one engine from step to step, and takes those that are over out of `live`."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        maker: StreamMaker,
        counters: EngineCounters,
        live: dict[str, LiveRequest],
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._maker = maker
        self._counters = counters
        self._live = live

    def deliver(self, prepared: PreparedStep, output: StepOutput, now: float) -> list[SampleUpdate]:
        """What a step brought for searches. Those that it had no room for all beams of go on with the next."""
        groups: dict[BeamGroup, None] = {}
        for s, (stream, _) in enumerate(prepared.drawn):
            if stream.beams is not None:
                stream.beams.note(stream, output, s)
                groups[stream.beams] = None
        return [update for group in groups for update in self._advance(group, now)]

    def abort(self, group: BeamGroup, index: int | None, now: float) -> None:
        """Its answers, or one of them, are not wanted any more."""
        gone = group.wanted if index is None else group.wanted & {index}
        self._counters.finished["abort"] += len(gone)
        group.wanted = group.wanted - gone
        if not group.wanted:
            self._end(group, now)

    def give_up(self, group: BeamGroup, reason: str, now: float) -> list[SampleUpdate]:
        group.failed = reason
        return self._tell(group, now)

    def _advance(self, group: BeamGroup, now: float) -> list[SampleUpdate]:
        """One token on where every beam has its candidates."""
        if group.failed is None:
            if any(stream.sequence.pending_len for stream in group.streams):
                return []
            those = [group.candidates[stream.sequence.sequence_id] for stream in group.streams]
            parents = group.search.advance(those)
            group.candidates.clear()
            group.drawn_tokens += len(those)
            self._counters.generated_tokens += len(those)
            self._reshape(group, parents, now)
        return self._tell(group, now)

    def _tell(self, group: BeamGroup, now: float) -> list[SampleUpdate]:
        updates = group.updates()
        if group.is_over:
            for update in updates:
                self._counters.finished[update.finish_reason or "abort"] += 1
            self._end(group, now)
        return updates

    def _end(self, group: BeamGroup, now: float) -> None:
        for stream in group.streams:
            self._scheduler.finish(stream.sequence, now)
            self._runner.leave(stream)
        del self._live[group.request.request_id]

    def _reshape(self, group: BeamGroup, parents: list[int], now: float) -> None:
        """Makes the sequences those of the new beams. Forks come before the tokens that tell them apart."""
        streams: list[Stream] = []
        dropped = [stream for i, stream in enumerate(group.streams) if i not in parents]
        for place, i in enumerate(parents):
            stream = group.streams[i]
            streams.append(self._another(group, stream, dropped, now) if i in parents[:place] else stream)
        if streams:
            group.streams[:] = streams
        for stream, beam in zip(streams, group.search.beams, strict=False):
            self._scheduler.append(stream.sequence, beam.token, now)

    def _another(self, group: BeamGroup, parent: Stream, dropped: list[Stream], now: float) -> Stream:
        """A fork of `parent`: what was dropped or, while there are fewer beams than seats, a new one."""
        if dropped:
            child = dropped.pop()
            self._scheduler.refork(parent.sequence, child.sequence)
            self._runner.forget(child)
            return child
        child = self._maker.child(
            group.request, parent, Sample(group.request.request_id, 0, group.recipe, started=True)
        )
        child.beams, child.begun_s = group, parent.begun_s
        self._scheduler.fork(parent.sequence, child.sequence, now)
        self._runner.enter(child)
        return child
