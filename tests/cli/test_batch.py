"""`puna batch` as a process: answers, refusals, a run that is killed and goes on, files that are wrong."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import write_tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", context=4096)


def line(number: int, **changes: Any) -> dict[str, Any]:
    body = {"prompt": f"line {number}", "max_tokens": 12, "seed": number, "ignore_eos": True} | changes
    return {"custom_id": f"c{number}", "method": "POST", "url": "/v1/completions", "body": body}


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def command(model: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "puna.cli.main", "batch", *arguments, "--model", str(model), "--kv-gib", "0.05"]


def run(model: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(model, *arguments), capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )


def answers(path: Path) -> dict[str, Any]:
    found = [json.loads(one) for one in path.read_text().splitlines()]
    assert len({one["custom_id"] for one in found}) == len(found)
    return {one["custom_id"]: one["response"] for one in found}


def test_every_line_is_answered_and_a_refused_one_has_its_reason(model: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [line(0), line(1, temperature=-1), line(2)])
    done = run(model, str(source))
    assert done.returncode == 1, done.stderr
    assert "2 of 3 lines answered, 1 refused" in done.stderr
    found = answers(tmp_path / "in.out.jsonl")
    assert {name: answer["status_code"] for name, answer in found.items()} == {"c0": 200, "c1": 400, "c2": 200}
    assert found["c0"]["body"]["usage"]["completion_tokens"] == 12


def test_a_run_that_was_killed_goes_on_with_what_is_missing(model: Path, tmp_path: Path) -> None:
    lines = [line(number, max_tokens=1500) for number in range(60)]
    source, target = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    first = subprocess.Popen(
        [*command(model, str(source), "-o", str(target)), "--max-seqs", "4"], stderr=subprocess.DEVNULL
    )
    while not target.exists() or target.read_bytes().count(b"\n") < 3:
        assert first.poll() is None, "it was quicker than this test"
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = answers_so_far(target)
    assert 3 <= len(before) < 60
    with target.open("ab") as opened:
        opened.write(b'{"custom_id": "c59", "respon')  # as a kill in the middle of a write leaves it
    again = run(model, str(source), "-o", str(target))
    assert again.returncode == 0, again.stderr
    assert f"{60 - len(before)} of 60 lines answered, {len(before)} by an earlier run" in again.stderr
    found = answers(target)
    assert set(found) == {one["custom_id"] for one in lines}
    whole = write(tmp_path / "some.jsonl", [lines[0], lines[59]])
    assert run(model, str(whole), "-o", str(tmp_path / "alone.jsonl")).returncode == 0
    for name, answer in answers(tmp_path / "alone.jsonl").items():
        assert answer["body"]["choices"] == found[name]["body"]["choices"]
    assert "0 of 60 lines answered, 60 by an earlier run" in run(model, str(source), "-o", str(target)).stderr


def answers_so_far(path: Path) -> list[bytes]:
    return [one for one in path.read_bytes().splitlines(keepends=True) if one.endswith(b"\n")]


def test_an_interrupted_run_keeps_what_it_has(model: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [line(number, max_tokens=1500) for number in range(60)])
    target = tmp_path / "in.out.jsonl"
    process = subprocess.Popen(
        [*command(model, str(source)), "--max-seqs", "4"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not target.exists() or target.read_bytes().count(b"\n") < 2:
        assert process.poll() is None, "it was quicker than this test"
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert 2 <= len(answers(target)) < 60


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(model: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [line(number) for number in range(20)])
    limit = 6000  # bytes that a file may have: a third of the answers
    full = subprocess.run(
        command(model, str(source)),
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert full.returncode == 1
    assert "Traceback" not in full.stderr
    assert "error: cannot read the input or write the output: File too large" in full.stderr
    again = run(model, str(source))
    assert again.returncode == 0, again.stderr
    assert "by an earlier run" in again.stderr
    assert len(answers(tmp_path / "in.out.jsonl")) == 20


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no lines"),
        ("nonsense\n", "line 1: the line is no request"),
        (json.dumps(line(1)) + "\n" + json.dumps(line(1)) + "\n", "line 2: custom_id 'c1' was there before"),
        (json.dumps(line(1) | {"url": "/v1/nothing"}), "line 1: url is '/v1/nothing'"),
    ],
)
def test_a_wrong_file_is_refused_before_the_model_is_loaded(
    model: Path, tmp_path: Path, content: str, said: str
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(content)
    done = run(model, str(source))
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "in.out.jsonl").exists()


def test_an_output_that_is_something_else_is_not_touched(model: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [line(0)])
    target = tmp_path / "letter.txt"
    target.write_text("Dear reader,\n")
    done = run(model, str(source), "-o", str(target))
    assert done.returncode == 1
    assert "is no answer of a batch" in done.stderr
    assert target.read_text() == "Dear reader,\n"
    assert run(model, str(source), "-o", str(source)).returncode == 2
