"""What a conversion leaves that is killed in the middle, and who clears it: real processes, real SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from puna.models.conversion import convert
from puna.models.load import load_model
from tests.tiny import write_tiny_llama

# Converts argv[1] to argv[2], and stays where it is at the first tensor.
HANGING = """
import sys, time
from puna.models.conversion import convert

def stop(done, total, what):
    print("writing", flush=True)
    time.sleep(600)

convert(sys.argv[1], sys.argv[2], force=True, progress=stop)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "source.gguf")


@pytest.fixture
def writing(source: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING, str(source), str(tmp_path / "to.gguf")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def killed(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_the_next_conversion_clears_what_a_killed_one_left_and_says_so(
    source: Path, tmp_path: Path, writing: subprocess.Popen[str]
) -> None:
    killed(writing)
    (left,) = hidden(tmp_path)
    told: list[str] = []
    done = convert(source, tmp_path / "to.gguf", tell=told.append)
    assert told == [f"{left} is removed: a conversion that was killed had left it"]
    assert not hidden(tmp_path)
    assert load_model(done.path).weights


def test_what_a_living_conversion_writes_is_left_alone(
    source: Path, tmp_path: Path, writing: subprocess.Popen[str]
) -> None:
    (theirs,) = hidden(tmp_path)
    (tmp_path / ".to.gguf.mine").mkdir()
    told: list[str] = []
    convert(source, tmp_path / "to.gguf", tell=told.append)
    convert(source, tmp_path / "other.gguf", tell=told.append)
    assert not told
    assert (theirs / "made").is_file()
    assert writing.poll() is None
    killed(writing)
    convert(source, tmp_path / "other.gguf", force=True, tell=told.append)
    assert theirs.exists(), "only the same target's are cleared"
    convert(source, tmp_path / "to.gguf", force=True, tell=told.append)
    assert len(told) == 1
    assert [path.name for path in hidden(tmp_path)] == [".to.gguf.mine"]


def test_a_folder_that_a_killed_conversion_had_moved_away_comes_back(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "model"
    file = convert(source, tmp_path / "a.gguf").path
    convert(file, target)
    away = tmp_path / ".model.converting-0123abcd"
    away.mkdir()
    (away / "lock").touch()
    target.rename(away / "replaced")
    told: list[str] = []
    done = convert(file, target, force=True, tell=told.append)
    assert told == [
        f"{target} is back: a conversion that was killed had moved it away",
        f"{away} is removed: a conversion that was killed had left it",
    ]
    assert not hidden(tmp_path)
    assert load_model(done.path).weights


def test_conversions_to_one_target_side_by_side_all_end_well(source: Path, tmp_path: Path) -> None:
    script = "import sys\nfrom puna.models.conversion import convert\n"
    script += "for _ in range(8): convert(sys.argv[1], sys.argv[2], force=True, tell=print)"
    command = [sys.executable, "-c", script, str(source), str(tmp_path / "to.gguf")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(3)]
    ends = [process.communicate()[0].decode() for process in processes]
    assert ends == ["", "", ""]
    assert not hidden(tmp_path)
    assert load_model(tmp_path / "to.gguf").weights
