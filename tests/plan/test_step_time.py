"""Step times: lines between points, keys and copies on top, files of two formats, and files that are neither."""

from __future__ import annotations

import gzip
from array import array
from pathlib import Path

import msgspec
import pytest

from puna.errors import InputError
from puna.kernels.batch import MOVE_COPY, MOVE_IN, MOVE_OUT
from puna.plan.profiles import _ONCE, BUILT_IN, step_times
from puna.plan.step_time import StepTime
from puna.sched.sequence import Sequence
from puna.sched.step import ScheduledRow, ScheduledStep


def step(*rows: tuple[int, int], moves: tuple[tuple[int, int, int], ...] = ()) -> ScheduledStep:
    sequence = Sequence(1, array("i", [1]), 1, 1)
    made = tuple(ScheduledRow(sequence, start, count, True) for start, count in rows)
    return ScheduledStep(rows=made, moves=moves, preempted=(), tokens=sum(count for _, count in rows))


@pytest.mark.parametrize(("tokens", "seconds"), [(0, 1.0), (1, 1.0), (6, 1.5), (11, 2.0), (21, 4.0), (31, 6.0)])
def test_between_points_and_beyond_them_times_lie_on_lines(tokens: int, seconds: float) -> None:
    times = StepTime(name="t", points=((1, 1.0), (11, 2.0), (21, 4.0)))
    assert times.of_tokens(tokens) == pytest.approx(seconds)


def test_keys_rows_and_moves_come_on_top() -> None:
    times = StepTime(
        name="t", points=((1, 1.0),), row_s=0.1, key_s=0.01, prompt_key_s=0.001, copy_s=0.0001, swap_s=0.00001
    )
    moves = ((MOVE_COPY, 1, 2), (MOVE_OUT, 3, 0), (MOVE_IN, 0, 3))
    expected = 1 + 2 * 0.1 + (5 + 1) * 0.01 + (11 + 12 + 13) * 0.001 + 0.0001 + 2 * 0.00001
    assert times.seconds(step((4, 1), (10, 3), (0, 1), moves=moves)) == pytest.approx(expected)


@pytest.mark.parametrize("points", [(), ((2, 1.0), (1, 1.0)), ((1, 0.0),), ((1, -1.0),), ((1, float("nan")),)])
def test_points_that_are_no_times_are_refused(points: tuple[tuple[int, float], ...]) -> None:
    with pytest.raises(InputError, match="step times"):
        StepTime(name="t", points=points)


def test_a_file_gives_what_was_written_and_a_name_what_is_built_in(tmp_path: Path) -> None:
    times = StepTime(name="mine", points=((1, 0.01), (8, 0.02)), key_s=1e-6)
    file = tmp_path / "mine.json"
    file.write_bytes(msgspec.json.encode(times))
    assert step_times(str(file)) == times
    assert all(step_times(name) is times for name, times in BUILT_IN.items())


def vidur(tmp_path: Path, name: str = "a100_x.csv.gz") -> Path:
    columns = ["time_stats.emb.median", *(f"time_stats.{each}.median" for each in (*_ONCE, "add"))]
    head = ",".join([*columns, "n_head", "n_kv_head", "n_embd", "num_tokens", "num_tensor_parallel_workers"])
    rows = [
        ",".join([workers, *["0.1"] * 8, "0.05", "32", "32", "4096", tokens, workers])
        for tokens, workers in (("8", "1"), ("1", "1"), ("8", "2"))
    ]
    file = tmp_path / name
    file.write_bytes(gzip.compress("\n".join([head, *rows]).encode()))
    return file


def test_kernel_times_of_a_device_become_step_times(tmp_path: Path) -> None:
    times = step_times(str(vidur(tmp_path)))
    assert [tokens for tokens, _ in times.points] == [1, 8]
    assert times.of_tokens(8) == pytest.approx(1e-3 * (1 + 32 * (8 * 0.1 + 2 * 0.05)))
    assert times.key_s == pytest.approx(32 * 2 * 2 * 4096 / (0.8 * 1.555e12))


@pytest.mark.parametrize("text", ["", "{", '{"name": "x"}', '{"name": "x", "points": [[1, 0]]}', "a,b\n1,2\n", "\x00"])
def test_files_that_hold_no_step_times_are_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a100_none"
    file.write_text(text)
    with pytest.raises(InputError, match=r"a100_none|step times"):
        step_times(str(file))


def test_an_unknown_name_or_device_is_told_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a100-13b"):
        step_times("b200")
    with pytest.raises(InputError, match="a100, h100"):
        step_times(str(vidur(tmp_path, "mi300_x.csv.gz")))
