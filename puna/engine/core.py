"""The engine: requests in, tokens out, one step at a time.

Ties together the scheduler (which tokens), the runner (which arrays) and a backend (the forward pass), and hands out
what was drawn; when a sample ends is decided in ends.py. Knows token ids only; text and stop strings are the client's.
It has no thread of its own: whoever owns it calls `step` while `has_work`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from puna.engine.backend import Backend, open_backend
from puna.engine.beam_keeper import BeamKeeper
from puna.engine.config import EngineConfig
from puna.engine.decoding import Decoding
from puna.engine.door import DoorLimits, check_request
from puna.engine.ends import GIVEN_UP, ended, finish_rule, form_rule, no_token
from puna.engine.entry import StreamMaker
from puna.engine.grammar_library import TokenBytes
from puna.engine.grammar_queue import GrammarQueue
from puna.engine.grammars import Compiling, Grammars
from puna.engine.live import LiveRequest, Sample, Stream, position_logprobs
from puna.engine.masks import MaskWriter
from puna.engine.news import StepNews
from puna.engine.params import EngineRequest, FinishReason, SampleUpdate
from puna.engine.record import StepRecorder, open_recorder
from puna.engine.runner import PreparedStep, Runner
from puna.engine.scheduling import open_scheduler
from puna.engine.stats import EngineCounters, EngineStats
from puna.errors import InputError, PunaError
from puna.kernels.batch import GREEDY_BELOW, I32, NO_TOKEN, U64, StepOutput
from puna.models.load import LoadedModel
from puna.sched.sequence import Sequence, Status
from puna.sched.step import ScheduledStep

IDLE_S = 0.005  # a look at grammars, while there is nothing else to do


class Engine:
    """One model on one backend. Not thread-safe: one thread calls it."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        progress: U64 | None = None,
        on_file: Callable[[LoadedModel], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.backend: Backend = open_backend(config, progress, on_file)
        self.config = config = self.backend.config
        self.max_model_len = self.backend.memory.max_model_len
        self.scheduler = open_scheduler(self.backend)
        kv = self.backend.memory.kv
        self.limits = DoorLimits(
            self.backend.model.program.vocab_size, self.max_model_len, config.max_seqs, kv.num_blocks - 1, kv.block_size
        )
        self.counters = EngineCounters()
        self._runner = Runner(config.max_seqs, self.max_model_len, config.block_size, self.limits.vocab_size)
        self._recorder: StepRecorder | None = open_recorder(self.backend)
        self._clock = clock
        self._live: dict[str, LiveRequest] = {}
        self._outbox: list[SampleUpdate] = []
        self._maker = StreamMaker(self.limits)
        self._beams = BeamKeeper(self.scheduler, self._runner, self._maker, self.counters, self._live)
        self._decoding: Decoding | None = None
        self._last_drawn: I32 | None = None
        model, vocab_size = self.backend.model, self.limits.vocab_size
        self._compiling = GrammarQueue(Grammars(lambda: TokenBytes.of(model.tokenizer, vocab_size)))
        self._masks = MaskWriter()

    @property
    def has_work(self) -> bool:
        return bool(self._live or self._outbox or self._compiling)

    @property
    def live_requests(self) -> tuple[str, ...]:
        return (*self._live, *self._compiling.names)

    def stats(self) -> EngineStats:
        counters = self.counters
        return EngineStats(
            self.scheduler.stats(), counters.as_dict(), len(self.live_requests), counters.step_tokens.counts.copy()
        )

    def check(self, request: EngineRequest) -> None:
        """InputError where `add` would refuse the request for what it asks."""
        if request.request_id in self._live or request.request_id in self._compiling:
            raise InputError(f"request_id {request.request_id!r} is in use; give every request its own")
        check_request(request, self.limits)

    def add(self, request: EngineRequest) -> None:
        """Queues a request. Raises InputError, MemoryBudgetError (it could never fit) or OverloadedError; then nothing
        of it is left behind. Where a grammar has to be compiled first, those may also come as `refused` of a step."""
        self.check(request)
        grammar = None
        if request.params.structured_outputs is not None and (grammar := self._compiling.add(request)) is None:
            return
        self._enter(request, grammar)

    def compile(self, request: EngineRequest) -> None:
        """Waits until the request's grammar is compiled, if it has one, so that `add` need not. Raises InputError where
        it cannot be."""
        self._compiling.compile(request)

    def _enter(self, request: EngineRequest, grammar: Compiling | None) -> None:
        now = self._clock()
        live = LiveRequest(request)
        try:
            streams = self._maker.first_streams(request, now, grammar)
            for stream in streams:
                self.scheduler.add(stream.sequence, now, admitted=request.admitted)
                live.streams.append(stream)
            if (group := streams[0].beams) is not None:
                live.streams = group.streams
        except Exception:
            for stream in live.streams:
                self.scheduler.abort(stream.sequence, now)
            raise
        self._live[request.request_id] = live
        self.counters.requests += 1
        if self._recorder is not None:
            self._recorder.note_request(request)
        for stream in live.streams:
            self._runner.enter(stream)
        for stream in list(live.streams):
            self._end_if_delivered_whole(stream)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Ends a request, or its sample `index`, wherever it is, and frees what it held. No update follows. Unknown
        requests are fine: they have just finished."""
        live = self._live.get(request_id)
        if live is None:
            self._compiling.remove(request_id)
            return
        if (group := live.streams[0].beams) is not None:
            self._beams.abort(group, index, self._clock())
            return
        for stream in list(live.streams):
            for sample in list(stream.samples):
                if index in (None, sample.index):
                    self._end(stream, sample, "abort")

    def step(self) -> StepNews:
        """Runs one step and returns what it brought."""
        refused = self._enter_compiled() if self._compiling else ()
        outbox, self._outbox = self._outbox, []
        clock, begun = time.perf_counter, time.perf_counter()
        now = self._clock()
        step = self.scheduler.schedule(now)
        scheduled = clock()
        for sequence in (*step.impossible, *step.shed):
            outbox += self._give_up(sequence)
        if not step.rows and not step.moves:
            if self._compiling and not (outbox or refused):
                self._compiling.wait(IDLE_S)
            return StepNews(outbox, refused=refused)
        try:
            prepared = self._runner.prepare(step, self._last_drawn)
            owners = self._owners(step) if self._recorder is not None else []
            ready = clock()
            output = self._run(prepared)
            ran = clock()
        except BaseException:
            self._last_drawn = None
            self.scheduler.abandon(step)
            raise
        self._last_drawn = output.tokens if prepared.one_each else None
        if prepared.one_each and (decoding := self._decoding_of(prepared)) is not None:
            news = self._deliver_column(decoding, step, output, now, outbox)
        else:
            self._note_begun(step, now)
            self.scheduler.commit(step, now)
            news = self._deliver(prepared, output, now, outbox)
        if self._recorder is not None:
            self._recorder.write(step, prepared, owners, output)
        counters = self.counters
        counters.steps += 1
        counters.computed_tokens += step.tokens
        counters.step_tokens.observe(step.tokens)
        counters.schedule_s += scheduled - begun
        counters.prepare_s += ready - scheduled
        sample_s = self.backend.interpreter.sample_s
        counters.forward_s += ran - ready - sample_s
        counters.sample_s += sample_s
        counters.deliver_s += clock() - ran
        return msgspec.structs.replace(news, refused=refused) if refused else news

    def _run(self, prepared: PreparedStep) -> StepOutput:
        if not prepared.masked:
            return self.backend.interpreter.step(prepared.batch)
        self._masks.begin(prepared.masked, prepared.batch.samples)
        try:
            return self.backend.interpreter.step(prepared.batch)
        finally:
            self._masks.finish()

    def _enter_compiled(self) -> tuple[tuple[str, PunaError], ...]:
        """Queues requests whose grammars are compiled; returns those that are refused."""
        refused = []
        for request, grammar in self._compiling.ready():
            try:
                self._enter(request, grammar)
            except PunaError as error:
                refused.append((request.request_id, error))
        return tuple(refused)

    @property
    def recording_failure(self) -> OSError | None:
        """Why recording stopped, where it did."""
        return self._recorder.failure if self._recorder is not None else None

    def close(self) -> None:
        """Aborts what is alive, ends the threads for grammars and closes the recording."""
        for request_id in self.live_requests:
            self.abort(request_id)
        self._compiling.close()
        self._masks.close()
        if self._recorder is not None:
            self._recorder.close()

    def _end_if_delivered_whole(self, stream: Stream) -> None:
        """A resumed sample may have ended with the last token that was delivered."""
        (sample, *_) = stream.samples
        if not stream.sequence.output_len:
            return
        reason, stop_id = finish_rule(sample, stream.sequence)
        last = form_rule(sample, stream.sequence) if reason != "stop" else None
        if last is None and reason is not None:
            last = ended(sample, reason, stop_token_id=stop_id)
        if last is not None and last.finish_reason is not None:
            self._outbox.append(last)
            self._end(stream, sample, last.finish_reason)

    def _note_begun(self, step: ScheduledStep, now: float) -> None:
        for row in step.rows:
            stream = self._runner.stream_of(row.sequence)
            if stream.begun_s is None:
                stream.begun_s = now

    def _owners(self, step: ScheduledStep) -> list[tuple[str, list[int]]]:
        samples = [self._runner.stream_of(row.sequence).samples for row in step.rows]
        return [(those[0].request_id, [sample.index for sample in those]) for those in samples]

    def _deliver(self, prepared: PreparedStep, output: StepOutput, now: float, updates: list[SampleUpdate]) -> StepNews:
        prepared.collect_scores(output)
        for scored, *_ in prepared.scored:
            scored.sequence.reuse_prefix = scored.scores is None or scored.scores.complete
        for stream, sample in prepared.drawn:
            if sample is stream.samples[0] and not sample.started:
                self.counters.cached_tokens += stream.sequence.cached_len
        places = self._fork(prepared, now)
        tokens = output.tokens[: len(prepared.drawn)].tolist()  # scored rows stand behind the drawn ones
        for s, ((_, sample), token) in enumerate(zip(prepared.drawn, tokens, strict=True)):
            if places[sample].beams is not None:
                continue
            if token >= 0:
                self.scheduler.append(places[sample].sequence, token, now)
            updates += self._drawn(places[sample], sample, token, output, s)
        for _, sample, reason in prepared.faults:
            updates.append(ended(sample, "error", error=reason))
            self._end(places[sample], sample, "error")
        updates += self._beams.deliver(prepared, output, now)
        return StepNews(updates)

    def _decoding_of(self, prepared: PreparedStep) -> Decoding | None:
        if self._decoding is None or self._decoding.prepared is not prepared:
            decoding = Decoding.of(prepared)
            if decoding is None:
                return None
            self._decoding = decoding
        return self._decoding

    def _deliver_column(
        self, decoding: Decoding, step: ScheduledStep, output: StepOutput, now: float, updates: list[SampleUpdate]
    ) -> StepNews:
        """One token a row, and objects only for those that end or want log-probabilities."""
        tokens = output.tokens.tolist()
        whole = self.scheduler.commit_drawn(step, tokens, now)
        apart = decoding.apart(tokens, whole)
        self.counters.generated_tokens += len(tokens) - len(apart)
        for s in apart:
            stream, sample = decoding.prepared.drawn[s]
            updates += self._drawn(stream, sample, tokens[s], output, s)
            tokens[s] = NO_TOKEN
        for s, stream, sample in decoding.held:
            if tokens[s] >= 0 and (last := self._follow(stream, sample, tokens[s])) is not None:
                updates.append(last)
        return StepNews(updates, decoding.roster, tokens)

    def _fork(self, prepared: PreparedStep, now: float) -> dict[Sample, Stream]:
        """Gives every sample that drew a token a stream of its own; the parent stays with its first sample."""
        places: dict[Sample, Stream] = {}
        for stream, sample in (*prepared.drawn, *((stream, sample) for stream, sample, _ in prepared.faults)):
            if sample is stream.samples[0]:
                places[sample] = stream
                continue
            live = self._live[sample.request_id]
            child = self._maker.child(live.request, stream, sample)
            child.begun_s = stream.begun_s
            self.scheduler.fork(stream.sequence, child.sequence, now)
            self._runner.enter(child)
            live.streams.append(child)
            places[sample] = child
        for stream in places.values():
            del stream.samples[1:]
        return places

    def _follow(self, stream: Stream, sample: Sample, token: int) -> SampleUpdate | None:
        """Moves the sample on in its form; ends it, with an update, where that lets it not go on."""
        if sample.matcher is None:
            return None
        sample.matcher.take(token)
        last = form_rule(sample, stream.sequence)
        if last is not None and last.finish_reason is not None:
            self._end(stream, sample, last.finish_reason)
        return last

    def _drawn(self, stream: Stream, sample: Sample, token: int, output: StepOutput, s: int) -> list[SampleUpdate]:
        """The updates for the token of row s, which its sequence has by now; ends the sample if it was the last."""
        sequence = stream.sequence
        if token < 0:
            last = no_token(sample, sequence, token)
            self._end(stream, sample, last.finish_reason or "error")
            return [last]
        self.counters.generated_tokens += 1
        reason, stop_id = finish_rule(sample, sequence)
        k = sample.recipe.params.logprobs
        logprobs = None
        if k is not None:
            top_ids, top_logprobs = output.top_ids[s, :k].tolist(), output.top_logprobs[s, :k].tolist()
            logprobs = [position_logprobs(token, float(output.logprob[s]), int(output.rank[s]), top_ids, top_logprobs)]
        first = not sample.started
        sample.started = True
        last_update = self._follow(stream, sample, token) if reason != "stop" else None
        if last_update is not None:
            reason = None
        update = SampleUpdate(
            request_id=sample.request_id,
            index=sample.index,
            token_ids=[token],
            logprobs=logprobs,
            prompt_logprobs=stream.scores.entries() if first and stream.scores is not None else None,
            seed=sample.recipe.seed if first and sample.recipe.params.temperature >= GREEDY_BELOW else None,
            cached_tokens=sequence.cached_len if first else None,
            queue_s=stream.queue_s if first else None,
            finish_reason=reason,
            stop_token_id=stop_id,
        )
        if reason is not None:
            self._end(stream, sample, reason)
        return [update] if last_update is None else [update, last_update]

    def _give_up(self, sequence: Sequence) -> list[SampleUpdate]:
        """Ends the samples of a sequence that the scheduler cannot or will not run."""
        if not self._runner.knows(sequence):
            return []  # its search has ended with another of its beams
        stream = self._runner.stream_of(sequence)
        if stream.beams is not None:
            return self._beams.give_up(stream.beams, GIVEN_UP, self._clock())
        updates = []
        for sample in list(stream.samples):
            updates.append(ended(sample, "error", error=GIVEN_UP))
            self._end(stream, sample, "error")
        return updates

    def _end(self, stream: Stream, sample: Sample, reason: FinishReason) -> None:
        """Takes a sample out; with its last sample a stream ends, and with its last stream the request."""
        stream.samples.remove(sample)
        self.counters.finished[reason] += 1
        if stream.samples:
            if stream.sequence.status is not Status.RUNNING:
                stream.sequence.seats = len(stream.samples)
            return
        now = self._clock()
        if reason in ("stop", "length"):
            self.scheduler.finish(stream.sequence, now)
        else:
            self.scheduler.abort(stream.sequence, now)
        self._runner.leave(stream)
        live = self._live[sample.request_id]
        live.streams.remove(stream)
        if not live.streams:
            del self._live[sample.request_id]
