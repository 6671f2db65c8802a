"""Turns a scheduled step into the flat arrays that a backend takes.

Every running sequence has a slot: a row of persistent arrays (token history, block table, sampling parameters) into
which only what is new is written; a step's batch is gathered from them without a Python object a token. Where a step
repeats the one before, its batch is that one's, patched in place (`puna.engine.steady`). Knows streams and the
scheduler's rows; does not know requests, text or when a sample ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from puna.engine.live import Sample, Stream
from puna.engine.masks import MaskedRow
from puna.engine.sampling import Draws, SamplingTable, Scores
from puna.engine.steady import SteadyBatch
from puna.kernels.batch import I32, StepBatch, StepOutput
from puna.sched.sequence import Sequence
from puna.sched.step import ScheduledStep

SPARE_BLOCKS = 8  # columns of a step's tables for blocks to come, so that a step that repeats it has room


@dataclass(frozen=True, slots=True, eq=False)
class PreparedStep:
    """`drawn[s]` is who gets the token of sample row s; `scored` are (stream, first prompt position, row, count);
    `faults` are samples whose rows could not be prepared, with the reason. `one_each`: every row of the step is one
    token and draws one, and nothing else happens. `masked`: rows that a grammar holds, whose masks are written anew for
    every step. A step that repeats it is prepared as the very same object."""

    batch: StepBatch
    drawn: list[tuple[Stream, Sample]]
    scored: list[tuple[Stream, int, int, int]]
    faults: list[tuple[Stream, Sample, str]]
    one_each: bool
    masked: list[MaskedRow]

    def collect_scores(self, output: StepOutput) -> None:
        """Hands prompt scores to their streams."""
        for stream, position, first, count in self.scored:
            if stream.scores is not None:
                stream.scores.fill(position, output, first, count)


class Runner:
    """Owns the slots of up to `max_seqs` running sequences of up to `max_model_len` tokens."""

    def __init__(self, max_seqs: int, max_model_len: int, block_size: int, vocab_size: int) -> None:
        self._block_size = block_size
        self._mask_words = -(-vocab_size // 32)
        self._history = np.zeros((max_seqs, max_model_len), dtype=np.int32)
        self._tables = np.zeros((max_seqs, -(-max_model_len // block_size)), dtype=np.int32)
        self._sampling = SamplingTable(max_seqs)
        self._free_slots = list(range(max_seqs - 1, -1, -1))
        self._streams: dict[int, Stream] = {}
        self._steady: tuple[PreparedStep, SteadyBatch] | None = None

    def enter(self, stream: Stream) -> None:
        """Makes a stream known; it gets its slot when it is first scheduled."""
        self._streams[stream.sequence.sequence_id] = stream

    def leave(self, stream: Stream) -> None:
        del self._streams[stream.sequence.sequence_id]
        self._release(stream)

    def forget(self, stream: Stream) -> None:
        """Its sequence has other tokens and blocks than before: they are written anew."""
        self._release(stream)

    def knows(self, sequence: Sequence) -> bool:
        return sequence.sequence_id in self._streams

    def stream_of(self, sequence: Sequence) -> Stream:
        return self._streams[sequence.sequence_id]

    def prepare(self, step: ScheduledStep, last_drawn: I32 | None = None) -> PreparedStep:
        """The batch of `step`; `last_drawn` are the tokens of the step prepared before, where all were taken. Preempted
        sequences lose their slots; their rows are written anew when they return."""
        if step.repeats and self._steady is not None and last_drawn is not None:
            prepared, steady = self._steady
            if steady.advance(step, last_drawn, self._tables, self._history):
                return prepared
        self._steady = None
        for sequence in step.preempted:
            if sequence.sequence_id in self._streams:
                self._release(self._streams[sequence.sequence_id])
        streams = [self._streams[row.sequence.sequence_id] for row in step.rows]
        self._write_news(step, streams)
        rows = len(streams)
        slots = np.fromiter((s.slot for s in streams), np.int32, rows)
        starts = np.fromiter((row.start for row in step.rows), np.int32, rows)
        counts = np.fromiter((row.count for row in step.rows), np.int32, rows)
        query_start = np.zeros(rows + 1, dtype=np.int32)
        np.cumsum(counts, out=query_start[1:])
        ahead = None
        if rows == query_start[-1]:  # one token each
            ahead = np.stack([starts, starts + np.int32(1)])
            positions, owners = ahead[0], slots
        else:
            positions = np.arange(query_start[-1], dtype=np.int32) + np.repeat(starts - query_start[:-1], counts)
            owners = np.repeat(slots, counts)
        width = max((len(row.sequence.blocks) for row in step.rows), default=0) + SPARE_BLOCKS
        draws, drawn, faults = self._draws(step, streams, query_start)
        scores, scored = self._scores(step, streams, query_start, len(drawn))
        one_each = ahead is not None and len(drawn) == rows > 0 and not (scored or faults or step.moves)
        one_each = one_each and all(len(stream.samples) == 1 and stream.beams is None for stream in streams)
        if one_each and ahead is not None:
            draws.position = ahead[1]
        masked = [MaskedRow(s, sample.matcher) for s, (_, sample) in enumerate(drawn) if sample.matcher is not None]
        batch = StepBatch(
            token_ids=self._history[owners, positions],
            positions=positions,
            query_start=query_start,
            tables=np.ascontiguousarray(self._tables[slots, :width]),
            moves=np.array(step.moves, dtype=np.int32).reshape(-1, 3),
            samples=self._sampling.rows(draws, scores, self._history, self._mask_words if masked else 0),
        )
        prepared = PreparedStep(batch, drawn, scored, faults, one_each, masked)
        if one_each and ahead is not None and _settled(drawn):
            penalised = [s for s, (_, sample) in enumerate(drawn) if sample.recipe.penalised]
            self._steady = prepared, SteadyBatch(batch, ahead, slots, np.array(penalised, dtype=np.intp))
        return prepared

    def _write_news(self, step: ScheduledStep, streams: list[Stream]) -> None:
        """Writes tokens and block ids that the slots do not have yet. Blocks before the one that a step writes into
        cannot have changed; that one can (copy-on-write)."""
        token_slots, token_places, tokens = [], [], []
        block_slots, block_places, blocks = [], [], []
        size = self._block_size
        for row, stream in zip(step.rows, streams, strict=True):
            sequence = row.sequence
            if stream.slot < 0:
                self._bind(stream)
                continue
            known, total = stream.known_len, len(sequence.tokens)
            if total == known + 1:
                token_slots.append(stream.slot)
                token_places.append(known)
                tokens.append(sequence.tokens[known])
                stream.known_len = total
            elif total > known:
                self._write_tokens(stream)
            place, table = row.start // size, sequence.blocks
            if len(table) == place + 1:
                block_slots.append(stream.slot)
                block_places.append(place)
                blocks.append(table[place])
            else:
                self._tables[stream.slot, place : len(table)] = table[place:]
        if tokens:
            self._history[token_slots, token_places] = tokens
        if blocks:
            self._tables[block_slots, block_places] = blocks

    def _bind(self, stream: Stream) -> None:
        stream.slot = self._free_slots.pop()
        stream.known_len = 0
        self._write_tokens(stream)
        blocks = stream.sequence.blocks
        self._tables[stream.slot, : len(blocks)] = blocks
        self._sampling.write(stream.slot, stream.samples[0].recipe)

    def _write_tokens(self, stream: Stream) -> None:
        tokens, known = stream.sequence.tokens, stream.known_len
        total = len(tokens)
        self._history[stream.slot, known:total] = np.frombuffer(tokens, dtype=np.int32)[known:]
        stream.known_len = total

    def _release(self, stream: Stream) -> None:
        if stream.slot >= 0:
            self._free_slots.append(stream.slot)
            stream.slot = -1

    def _draws(
        self, step: ScheduledStep, streams: list[Stream], query_start: I32
    ) -> tuple[Draws, list[tuple[Stream, Sample]], list[tuple[Stream, Sample, str]]]:
        drawn: list[tuple[Stream, Sample]] = []
        faults: list[tuple[Stream, Sample, str]] = []
        row_of: list[int] = []
        draws = Draws(*(np.empty(0, dtype=np.int32),) * 3, None, {}, {}, {}, {})
        repeats = False
        for r, (row, stream) in enumerate(zip(step.rows, streams, strict=True)):
            if not row.completes:
                continue
            repeats |= len(stream.samples) > 1
            for sample in stream.samples:
                if not sample.recipe.plain:
                    try:
                        _constrain(draws, len(drawn), sample, stream)
                    except Exception as error:  # whatever it is, it is this sample's own
                        faults.append((stream, sample, str(error) or type(error).__name__))
                        continue
                drawn.append((stream, sample))
                row_of.append(r)
        count = len(drawn)
        rows = np.array(row_of, dtype=np.int32)
        draws.slot = np.fromiter((stream.slot for stream, _ in drawn), np.int32, count)
        draws.index = query_start[1:][rows] - np.int32(1)
        draws.position = np.fromiter((len(stream.sequence.tokens) for stream, _ in drawn), np.int32, count)
        if repeats:
            draws.seeds = np.fromiter((sample.recipe.seed for _, sample in drawn), np.uint64, count)
        return draws, drawn, faults

    def _scores(
        self, step: ScheduledStep, streams: list[Stream], query_start: I32, first: int
    ) -> tuple[Scores | None, list[tuple[Stream, int, int, int]]]:
        """Row p of a prompt scores the token at p + 1."""
        scored: list[tuple[Stream, int, int, int]] = []
        parts: list[tuple[I32, I32, I32, I32, I32]] = []
        for r, (row, stream) in enumerate(zip(step.rows, streams, strict=True)):
            if stream.scores is None or stream.scores.complete:
                continue
            count = min(row.start + row.count, row.sequence.prompt_len - 1) - row.start
            if count <= 0:
                continue
            place = np.arange(count, dtype=np.int32)
            slot = np.full(count, stream.slot, dtype=np.int32)
            position = place + np.int32(row.start + 1)
            wanted = np.full(count, stream.scores.num_logprobs, dtype=np.int32)
            parts.append((slot, query_start[r] + place, position, self._history[slot, position], wanted))
            scored.append((stream, row.start + 1, first, count))
            first += count
        if not parts:
            return None, []
        return Scores(*(np.concatenate(column) for column in zip(*parts, strict=True))), scored


def _settled(drawn: list[tuple[Stream, Sample]]) -> bool:
    return all(sample.recipe.settled(stream.sequence.output_len) for stream, sample in drawn)


def _constrain(draws: Draws, row: int, sample: Sample, stream: Stream) -> None:
    recipe = sample.recipe
    banned = recipe.banned(stream.sequence.tokens)
    if banned:
        draws.banned[row] = np.array(banned, dtype=np.int32)
    if len(recipe.allowed):
        draws.allowed[row] = recipe.allowed
    if len(recipe.bias_ids):
        draws.bias_ids[row], draws.bias_values[row] = recipe.bias_ids, recipe.bias_values
