"""A recorded run can be run again, bit by bit; what differs is named."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from puna.engine.record import MAGIC, Array, RecordHeader, StepRecord, open_recording
from puna.engine.replay import replay
from puna.errors import InputError, MemoryBudgetError
from tests.engine.conftest import EngineMaker
from tests.engine.driving import Samples, finish, prompt, request
from tests.tiny import write_tiny_llama


@pytest.fixture
def recorded(make_engine: EngineMaker, tmp_path: Path) -> Path:
    """Forks, penalties, prompt scores, prefix hits, preemption and an abort."""
    path = tmp_path / "run.record"
    probe = make_engine()
    nine_blocks = 9 * (probe.config.kv_bytes // probe.backend.memory.kv.num_blocks)
    engine = make_engine(
        record=str(path), kv_bytes=nine_blocks, max_model_len=100, budget_tokens=30, swap_bytes=nine_blocks
    )
    engine.add(request("a", prompt(40, 1), n=3))
    engine.add(request("b", prompt(40, 1), repetition_penalty=1.5, prompt_logprobs=2, ignore_eos=True, max_tokens=30))
    engine.add(request("c", prompt(30, 2), logit_bias={4: 2.0}, bad_word_ids=[[5, 6]], max_tokens=40))
    found: Samples = {}
    while ("c", 0) not in found:
        finish(engine, found, steps=3)
    engine.abort("c")
    finish(engine, found)
    engine.close()
    return path


def rewrite(path: Path, at: int, change: Any) -> None:
    """Changes the record of step `at`, and makes the file whole again."""
    data, place, frames = path.read_bytes(), len(MAGIC), []
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "little")
        frames.append(data[place + 8 : place + 8 + length])
        place += 8 + length
    record = msgspec.msgpack.decode(zlib.decompress(frames[at + 1]), type=StepRecord)
    frames[at + 1] = zlib.compress(msgspec.msgpack.encode(change(record)))
    whole = [len(f).to_bytes(4, "little") + zlib.crc32(f).to_bytes(4, "little") + f for f in frames]
    path.write_bytes(MAGIC + b"".join(whole))


def rewrite_header(path: Path, change: Callable[[RecordHeader], RecordHeader]) -> None:
    data = path.read_bytes()
    start = len(MAGIC) + 8
    end = start + int.from_bytes(data[len(MAGIC) : len(MAGIC) + 4], "little")
    changed = msgspec.msgpack.encode(change(msgspec.msgpack.decode(data[start:end], type=RecordHeader)))
    head = len(changed).to_bytes(4, "little") + zlib.crc32(changed).to_bytes(4, "little")
    path.write_bytes(MAGIC + head + changed + data[end:])


def change(record: StepRecord, part: str, name: str, array: Array | None) -> StepRecord:
    arrays = dict(getattr(record, part))
    if array is None:
        del arrays[name]
    else:
        arrays[name] = array
    return msgspec.structs.replace(record, **{part: arrays})


def test_a_recording_replays_exactly(recorded: Path) -> None:
    report = replay(recorded)
    assert report.exact
    assert report.same_fingerprint
    assert str(report) == f"exact, {report.steps} steps, {report.tokens} tokens"
    assert report.steps > 20


def test_a_recording_holds_inputs_and_decisions(recorded: Path) -> None:
    steps = list(open_recording(recorded).steps())
    assert [one.request_id for one in steps[0].requests] == ["a", "b", "c"]
    assert {row.request_id for step in steps for row in step.rows} == {"a", "b", "c"}
    assert any(step.preempted for step in steps)


def test_a_torn_last_step_is_left_out_and_told(recorded: Path) -> None:
    whole = replay(recorded)
    recorded.write_bytes(recorded.read_bytes()[:-3])
    report = replay(recorded)
    assert (report.exact, report.steps, report.torn) == (True, whole.steps - 1, True)
    assert "torn" in str(report)


def test_damage_before_the_last_step_is_no_torn_end(recorded: Path) -> None:
    data = bytearray(recorded.read_bytes())
    data[len(data) // 2] ^= 1
    recorded.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        replay(recorded)


def test_the_first_difference_is_named(recorded: Path) -> None:
    def change(record: StepRecord) -> StepRecord:
        tokens = record.output["tokens"].numpy().copy()
        tokens[-1] ^= 1
        altered = Array(record.output["tokens"].dtype, list(tokens.shape), tokens.tobytes())
        return msgspec.structs.replace(record, output={**record.output, "tokens": altered})

    step = next(s.index for s in open_recording(recorded).steps() if s.index > 8 and s.samples["index"].shape[0] > 1)
    rewrite(recorded, step, change)
    report = replay(recorded)
    assert report.difference is not None
    assert (report.exact, report.steps, report.difference.step, report.difference.field) == (
        False,
        step,
        step,
        "tokens",
    )
    assert f"differs at step {step}" in str(report)
    assert report.difference.request_id in {"a", "b", "c"}


def test_a_difference_in_one_bit_of_a_logprob_is_found(recorded: Path) -> None:
    def change(record: StepRecord) -> StepRecord:
        values = record.output["logprob"]
        flipped = bytes([values.data[0] ^ 1]) + values.data[1:]
        return msgspec.structs.replace(
            record, output={**record.output, "logprob": msgspec.structs.replace(values, data=flipped)}
        )

    step = next(s.index for s in open_recording(recorded).steps() if s.samples["index"].shape[0])
    rewrite(recorded, step, change)
    difference = replay(recorded).difference
    assert difference is not None
    assert (difference.step, difference.row, difference.field) == (step, 0, "logprob")


def test_another_model_is_noticed_before_anything_runs(recorded: Path, tmp_path: Path) -> None:
    other = write_tiny_llama(tmp_path / "other.gguf", tied=False, types="Q8_0", seed=5)
    report = replay(recorded, str(other))
    assert not report.exact
    assert report.steps == 0
    assert "another fingerprint" in str(report)
    forced = replay(recorded, str(other), anyway=True)
    assert forced.difference is not None


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(InputError, match="not a whole recording"):
        replay(path)
    with pytest.raises(InputError, match="cannot read"):
        replay(tmp_path / "missing")


def test_a_place_that_cannot_be_written_is_refused_at_start(make_engine: EngineMaker, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot record"):
        make_engine(record=str(tmp_path / "no" / "such" / "folder"))


def test_a_disk_that_fills_up_stops_the_recording_and_nothing_else(make_engine: EngineMaker) -> None:
    engine = make_engine(record="/dev/full")
    engine.add(request("a", prompt(5, 1)))
    assert finish(engine)["a", 0].tokens
    engine.close()
    assert engine.recording_failure is not None


def test_the_threads_of_the_machine_that_recorded_are_not_needed(recorded: Path) -> None:
    def with_threads(header: RecordHeader) -> RecordHeader:
        return msgspec.structs.replace(header, config=msgspec.structs.replace(header.config, threads=1000))

    rewrite_header(recorded, with_threads)
    assert replay(recorded).exact


@pytest.mark.parametrize("part", ["batch", "samples", "output"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: None,
        lambda array: Array("|O", array.shape, array.data),
        lambda array: Array("no type", array.shape, array.data),
        lambda array: Array("<f8", array.shape, array.data),
        lambda array: Array(array.dtype, [2**62], array.data),
        lambda array: Array(array.dtype, [-1], array.data),
        lambda array: Array(array.dtype, array.shape, array.data[1:]),
    ],
    ids=["missing", "objects", "no type", "another type", "too large", "negative", "cut"],
)
def test_a_step_that_contradicts_itself_is_refused(recorded: Path, part: str, spoil: Any) -> None:
    def spoiled(record: StepRecord) -> StepRecord:
        name = next(name for name, array in getattr(record, part).items() if array.data)
        return change(record, part, name, spoil(getattr(record, part)[name]))

    rewrite(recorded, 1, spoiled)
    with pytest.raises(InputError, match="damaged"):
        replay(recorded)


def test_a_step_that_no_backend_could_run_is_refused(recorded: Path) -> None:
    def spoiled(record: StepRecord) -> StepRecord:
        tables = record.batch["tables"]
        return change(record, "batch", "tables", Array("<i4", tables.shape, b"\x7f" * len(tables.data)))

    rewrite(recorded, 1, spoiled)
    with pytest.raises(InputError, match="step 1 of the recording cannot be run"):
        replay(recorded)


def test_a_step_that_unpacks_to_gigabytes_is_refused(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puna.engine.record.MAX_FRAME_BYTES", 10_000)
    data = recorded.read_bytes()
    bomb = zlib.compress(b"\0" * 100_000)
    header_end = len(MAGIC) + 8 + int.from_bytes(data[len(MAGIC) : len(MAGIC) + 4], "little")
    frame = len(bomb).to_bytes(4, "little") + zlib.crc32(bomb).to_bytes(4, "little") + bomb
    recorded.write_bytes(data[:header_end] + frame)
    with pytest.raises(InputError, match="more than 10000 bytes"):
        replay(recorded)


@pytest.mark.parametrize(
    ("kv", "error"),
    [({"num_blocks": 2**40}, MemoryBudgetError), ({"num_blocks": 0}, InputError), ({"block_size": 2**31}, InputError)],
)
def test_a_pool_that_cannot_be_is_refused(recorded: Path, kv: dict[str, int], error: type[Exception]) -> None:
    rewrite_header(recorded, lambda header: msgspec.structs.replace(header, kv=dataclasses.replace(header.kv, **kv)))
    with pytest.raises(error, match="the recorded pool"):
        replay(recorded)
