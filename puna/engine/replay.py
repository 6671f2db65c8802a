"""Runs a recording again and compares every token and log-probability, bit by bit.

Needs the recording and the model file; the scheduler is not asked again, its decisions are in the recording. With a
backend that is batch-invariant, a difference means a bug, another model, or a machine that computes otherwise.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from puna.engine.backend import open_interpreter
from puna.engine.record import RecordedRow, RecordHeader, StepRecord, open_recording
from puna.errors import InputError
from puna.kernels.batch import Interpreter, StepOutput
from puna.models.names import resolve


@dataclass(frozen=True)
class Difference:
    """The first value that came out otherwise. `row` is the sample row of step `step`."""

    step: int
    row: int
    request_id: str
    sequence_id: int
    field: str
    expected: str
    found: str


@dataclass(frozen=True)
class ReplayReport:
    """What a replay found. `exact` is True only if every step ran and nothing differed."""

    path: str
    steps: int
    tokens: int
    torn: bool
    recorded_fingerprint: str
    found_fingerprint: str
    difference: Difference | None
    ran: bool = True

    @property
    def same_fingerprint(self) -> bool:
        return self.recorded_fingerprint == self.found_fingerprint

    @property
    def exact(self) -> bool:
        return self.ran and self.difference is None

    def __str__(self) -> str:
        lines = []
        if not self.same_fingerprint:
            lines.append(f"another fingerprint: recorded {self.recorded_fingerprint}, found {self.found_fingerprint}")
        d = self.difference
        if not self.ran:
            lines.append("not run: answers of another model or numeric path may differ (anyway=True runs it)")
        elif d is None:
            lines.append(f"exact, {self.steps} steps, {self.tokens} tokens")
        else:
            lines.append(
                f"differs at step {d.step}, row {d.row} (request {d.request_id}, sequence {d.sequence_id}): "
                f"{d.field} was {d.expected}, is {d.found}"
            )
        if self.torn:
            lines.append("the recording's last step is torn and was left out")
        return "; ".join(lines)


def replay(path: str | Path, model: str | None = None, *, anyway: bool = False) -> ReplayReport:
    """Replays the recording at `path`, on `model` (a path or name) instead of the recorded file where given.

    With another fingerprint than the recorded one nothing is run unless `anyway`. Raises InputError where the
    recording cannot be read or belongs to a model of another shape, and what loading a model raises.
    """
    recording = open_recording(Path(path))
    header = recording.header
    interpreter = open_interpreter(header.config, header.kv, _model_path(header, model))
    found = interpreter.fingerprint
    ran = anyway or found == header.fingerprint
    steps = tokens = 0
    difference = None
    for record in recording.steps() if ran else ():
        difference = _first_difference(record, _run(interpreter, record))
        if difference is not None:
            break
        steps += 1
        tokens += len(record.output["tokens"].numpy())
    return ReplayReport(str(path), steps, tokens, recording.torn, header.fingerprint, found, difference, ran)


def _model_path(header: RecordHeader, model: str | None) -> Path:
    if model is not None:
        return Path(resolve(model))
    recorded = header.model_path
    return Path(recorded) if os.path.exists(recorded) else resolve(header.config.model)


def _run(interpreter: Interpreter, record: StepRecord) -> StepOutput:
    batch = record.step_batch()
    vocab = interpreter.program.vocab_size
    if batch.token_ids.size and int(batch.token_ids.max()) >= vocab:
        raise InputError(f"the recording has token id {batch.token_ids.max()}, this model's ids end at {vocab - 1}")
    if int(batch.samples.num_logprobs.max(initial=0)) > vocab:
        raise InputError(f"step {record.index} of the recording wants more log-probabilities than the model has tokens")
    try:
        return interpreter.step(batch)
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"step {record.index} of the recording cannot be run: {reason}") from error


def _first_difference(record: StepRecord, output: StepOutput) -> Difference | None:
    """The lowest sample row in which any field differs in any bit."""
    worst: tuple[int, str] | None = None
    for field in fields(StepOutput):
        if field.name not in record.output:
            continue
        expected, found = record.output[field.name].numpy(), getattr(output, field.name)
        if (expected.shape, expected.dtype) != (found.shape, found.dtype):
            return _difference(record, 0, field.name, _form(expected), _form(found))
        rows = np.nonzero(expected.view(np.int32) != found.view(np.int32))[0]
        if len(rows) and (worst is None or rows[0] < worst[0]):
            worst = (int(rows[0]), field.name)
    if worst is None:
        return None
    row, name = worst
    return _difference(record, row, name, str(record.output[name].numpy()[row]), str(getattr(output, name)[row]))


def _form(array: npt.NDArray[Any]) -> str:
    return f"{array.dtype} of shape {array.shape}"


def _difference(record: StepRecord, row: int, name: str, expected: str, found: str) -> Difference:
    ends = record.batch["query_start"].numpy()[1:]
    index = record.samples["index"].numpy()
    owner = int(np.searchsorted(ends, index[row], side="right")) if row < len(index) else 0
    recorded = record.rows[min(owner, len(record.rows) - 1)] if record.rows else RecordedRow("?", [], 0, 0, 0)
    return Difference(record.index, row, recorded.request_id, recorded.sequence_id, name, expected, found)
