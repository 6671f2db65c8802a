"""`puna simulate`: traces through policies on the command line, what is written, what is refused and how."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.process import puna

TRACE = "arrival_s,client,prompt_tokens,output_tokens\n" + "".join(
    f"{0.01 * n:.2f},{'ab'[n % 2]},{20 + n},{10 + n % 7}\n" for n in range(30)
)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    file = tmp_path / "trace.csv"
    file.write_text(TRACE)
    return file


def test_policies_stand_side_by_side_and_everything_is_in_the_file(trace: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "out.json", tmp_path / "out.svg"
    arguments = ["-p", "fcfs,priority", "--priority", "b=-1", "--max-seqs", "2"]
    arguments += ["--json", str(out), "--plot", str(picture)]
    done = puna("simulate", str(trace), *arguments)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("fcfs", "priority", "first token of a", "first token of b"))
    fcfs, priority = json.loads(out.read_text())["runs"]
    assert [fcfs["policy"], priority["policy"]] == ["fcfs", "priority"]
    assert (
        fcfs["figures"]["output_tokens"] == priority["figures"]["output_tokens"] == sum(10 + n % 7 for n in range(30))
    )
    waits = [run["clients"]["b"]["wait_s"]["mean"] for run in (fcfs, priority)]
    assert waits[1] < 0.8 * waits[0]
    assert "<svg" in picture.read_text()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--policy", "fastest"], "fastest"),
        (["--priority", "a"], "u03=-1"),
        (["--kv-tokens", "10"], "--kv-tokens"),
    ],
)
def test_wrong_usage_is_told_before_the_trace_is_read(arguments: list[str], named: str) -> None:
    done = puna("simulate", "/no/such/file", *arguments)
    assert done.returncode == 2
    assert named in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--steps", "b200"], "a100-13b"),
        (["--priority", "c=1"], "client 'c'"),
        (["--memory", "max", "--kv-tokens", "2000"], "contiguous range"),
    ],
)
def test_what_cannot_be_simulated_is_one_line(trace: Path, arguments: list[str], named: str) -> None:
    done = puna("simulate", str(trace), *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert named in done.stderr
