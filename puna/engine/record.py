"""Writes every step of an engine to a file, so that it can be run again: a switch (`EngineConfig.record`).

The file: the line MAGIC, then frames of (uint32 length, uint32 CRC-32, payload), little-endian. The first payload is a
RecordHeader in msgpack; every other is a StepRecord in msgpack under zlib. A frame is flushed to the operating system
after its step, so a killed process leaves whole frames and at most one torn one, which readers drop. A recording holds
the prompts and answers as token ids: guard it like a log of conversations.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt

from puna import __version__
from puna.engine.backend import Backend
from puna.engine.config import EngineConfig
from puna.engine.params import EngineRequest
from puna.engine.runner import PreparedStep
from puna.errors import InputError
from puna.kernels.batch import KVConfig, SampleRows, StepBatch, StepOutput
from puna.sched.step import ScheduledStep

MAGIC = b"puna-record-1\n"
MAX_FRAME_BYTES = 1 << 30
_UNRECORDED = {"samples", "ready", "want_logits", "logits"}  # recorded apart, or not at all
_DTYPES = {"I32": "<i4", "F32": "<f4", "U32": "<u4", "U64": "<u8"}  # by the annotation of the field
_FRAME = struct.Struct("<II")


class RecordHeader(msgspec.Struct, frozen=True):
    """What was recorded: settled options, the pool, the backend's fingerprint and the model file."""

    puna_version: str
    config: EngineConfig
    kv: KVConfig
    fingerprint: str
    model_path: str


class Array(msgspec.Struct, frozen=True, array_like=True):
    """A C-contiguous array as plain values."""

    dtype: str
    shape: list[int]
    data: bytes

    def numpy(self) -> npt.NDArray[Any]:
        """ValueError where shape and data contradict each other."""
        if len(self.shape) > 2 or any(extent < 0 for extent in self.shape):
            raise ValueError(f"the shape {self.shape[:5]}")
        return np.frombuffer(self.data, dtype=self.dtype).reshape(self.shape)


class RecordedRow(msgspec.Struct, frozen=True, array_like=True):
    """A scheduled row: whose, and which tokens."""

    request_id: str
    samples: list[int]
    sequence_id: int
    start: int
    count: int


class StepRecord(msgspec.Struct, frozen=True):
    """One step: requests that arrived since the last one, decisions, the arrays in and the arrays out."""

    index: int
    requests: list[EngineRequest]
    rows: list[RecordedRow]
    preempted: list[int]
    batch: dict[str, Array]
    samples: dict[str, Array]
    output: dict[str, Array]

    def step_batch(self) -> StepBatch:
        samples = SampleRows(**{name: array.numpy() for name, array in self.samples.items()})
        batch: dict[str, Any] = {name: array.numpy() for name, array in self.batch.items()}
        return StepBatch(**batch, samples=samples)


class StepRecorder:
    """Appends steps to one file. An OSError while writing stops the recording, not the engine: see `failure`."""

    def __init__(self, file: BinaryIO, header: RecordHeader) -> None:
        self.failure: OSError | None = None
        self._file = file
        self._steps = 0
        self._requests: list[EngineRequest] = []
        self._file.write(MAGIC)
        self._append(msgspec.msgpack.encode(header))

    def note_request(self, request: EngineRequest) -> None:
        self._requests.append(request)

    def write(
        self, step: ScheduledStep, prepared: PreparedStep, owners: list[tuple[str, list[int]]], out: StepOutput
    ) -> None:
        """`owners[r]`: request and samples of row r, as they were when the step was prepared."""
        batch = _arrays(prepared.batch)
        record = StepRecord(
            index=self._steps,
            requests=self._requests,
            rows=[
                RecordedRow(request_id, samples, row.sequence.sequence_id, row.start, row.count)
                for row, (request_id, samples) in zip(step.rows, owners, strict=True)
            ],
            preempted=[sequence.sequence_id for sequence in step.preempted],
            batch=batch,
            samples=_arrays(_without_idle_history(prepared.batch.samples)),
            output=_arrays(out),
        )
        self._steps += 1
        self._requests = []
        self._append(zlib.compress(msgspec.msgpack.encode(record), 1))

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:  # what a failed write left in the buffer is written once more
            self.failure = self.failure or error

    def _append(self, payload: bytes) -> None:
        if self.failure is not None:
            return
        try:
            self._file.write(_FRAME.pack(len(payload), zlib.crc32(payload)) + payload)
            self._file.flush()
        except OSError as error:
            self.failure = error


@dataclasses.dataclass
class Recording:
    """An open recording. `torn` is known once `steps` has been read to its end."""

    header: RecordHeader
    path: Path
    torn: bool = False

    def steps(self) -> Iterator[StepRecord]:
        decoder = msgspec.msgpack.Decoder(StepRecord)
        with self.path.open("rb") as file:
            file.seek(len(MAGIC))
            _read_frame(file)
            while True:
                payload, self.torn = _read_frame(file)
                if payload is None and self.torn and file.read(1):
                    raise InputError(f"{self.path}: a step of the recording is damaged, and others stand behind it")
                if payload is None:
                    return
                try:
                    record = decoder.decode(_decompressed(payload))
                    _check(record)
                except (zlib.error, msgspec.MsgspecError, ValueError) as error:
                    raise InputError(f"{self.path}: a step of the recording is damaged ({error})") from None
                yield record


def open_recorder(backend: Backend) -> StepRecorder | None:
    """A recorder where the config asks for one. InputError where the file cannot be written."""
    path = backend.config.record
    if path is None:
        return None
    header = RecordHeader(
        puna_version=__version__,
        config=backend.config,
        kv=backend.memory.kv,
        fingerprint=backend.interpreter.fingerprint,
        model_path=str(backend.model.path),
    )
    try:
        return StepRecorder(Path(path).open("wb"), header)
    except OSError as error:
        raise InputError(
            f"cannot record to {path}: {error.strerror}; name a file that can be written", param="record"
        ) from None


def open_recording(path: Path) -> Recording:
    """InputError where `path` is no recording of this version."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
            payload, _ = _read_frame(file) if magic == MAGIC else (None, True)
    except OSError as error:
        raise InputError(f"cannot read the recording {path}: {error.strerror}") from None
    if payload is None:
        raise InputError(f"{path} is not a whole recording: it does not begin with {MAGIC!r} and a header")
    try:
        return Recording(msgspec.msgpack.decode(payload, type=RecordHeader), path)
    except msgspec.MsgspecError as error:
        raise InputError(f"{path}: the recording's header is of another version of Puna ({error})") from None


def _read_frame(file: BinaryIO) -> tuple[bytes | None, bool]:
    """(payload, False), or (None, whether something torn was left)."""
    head = file.read(_FRAME.size)
    if len(head) < _FRAME.size:
        return None, bool(head)
    length, checksum = _FRAME.unpack(head)
    if length > MAX_FRAME_BYTES:
        return None, True
    payload = file.read(length)
    if len(payload) < length or zlib.crc32(payload) != checksum:
        return None, True
    return payload, False


def _decompressed(payload: bytes) -> bytes:
    """A few bytes of zlib can stand for any number; ValueError beyond what a step may have."""
    stream = zlib.decompressobj()
    data = stream.decompress(payload, MAX_FRAME_BYTES)
    if not stream.eof:
        raise ValueError(
            "it is cut off" if len(data) < MAX_FRAME_BYTES else f"it has more than {MAX_FRAME_BYTES} bytes"
        )
    return data


def _check(record: StepRecord) -> None:
    """ValueError where a field is missing or malformed, or rows and arrays do not fit together."""
    for arrays, kind in ((record.batch, StepBatch), (record.samples, SampleRows), (record.output, StepOutput)):
        types = {field.name: _DTYPES.get(str(field.type)) for field in dataclasses.fields(kind)}
        wanted = {name: dtype for name, dtype in types.items() if name not in _UNRECORDED}
        if arrays.keys() != wanted.keys():
            names = ", ".join(sorted(name[:40] for name in arrays.keys() ^ wanted.keys()))
            raise ValueError(f"missing or unknown: {names}")
        for name, array in arrays.items():
            if array.dtype != wanted[name]:
                raise ValueError(f"{name} is of type {array.dtype[:20]!r}; expected {wanted[name]!r}")
            try:
                array.numpy()
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
    if record.batch["query_start"].shape != [len(record.rows) + 1]:
        raise ValueError(f"{len(record.rows)} rows, but query_start of shape {record.batch['query_start'].shape}")


def _arrays(value: Any) -> dict[str, Array]:
    found = {}
    for field in dataclasses.fields(value):
        if field.name not in _UNRECORDED:
            array = np.ascontiguousarray(getattr(value, field.name))
            found[field.name] = Array(array.dtype.str, list(array.shape), array.tobytes())
    return found


def _without_idle_history(samples: SampleRows) -> SampleRows:
    """Histories are read by penalties only: keeps the rows that have one, cut to the longest."""
    penalised = (samples.repetition != 1) | (samples.frequency != 0) | (samples.presence != 0)
    total_len = np.where(penalised, samples.total_len, 0).astype(np.int32)
    kept, row = np.unique(samples.history_row[penalised], return_inverse=True)
    history_row = np.zeros(len(total_len), dtype=np.int32)
    history_row[penalised] = row
    width = max(1, int(total_len.max(initial=0)))
    history = samples.history[kept, :width] if len(kept) else np.zeros((1, 1), dtype=np.int32)
    return dataclasses.replace(
        samples,
        history=history,
        history_row=history_row,
        prompt_len=np.where(penalised, samples.prompt_len, 0).astype(np.int32),
        total_len=total_len,
    )
