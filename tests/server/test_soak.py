"""The soak in small: clients that behave see no error while others leave in the middle and send garbage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.fair_share_page import judge

ROOT = Path(__file__).parents[2]
CROWD = ["--clients", "20", "--leaving", "2", "--garbage", "2"]


def test_clients_that_leave_and_send_garbage_disturb_nobody(patient_model: Path, tmp_path: Path) -> None:
    options = [*CROWD, "--max-seqs", "6", "--kv-gib", "0.01", "--minutes", "0.08", "--json", f"{tmp_path}/soak.json"]
    command = [sys.executable, "benchmarks/soak.py", "--model", str(patient_model), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    result = json.loads((tmp_path / "soak.json").read_text())
    assert result["failures"] == []
    assert [each["promise"] for each in result["verdicts"] if not each["kept"]] == []
    assert done.returncode == 0, done.stderr
    assert result["outcomes"]["answered"] > 20  # a busy machine has fewer than a quiet one
    assert result["outcomes"]["left"] > 0
    assert result["outcomes"]["garbage"] > 0
    assert "| no block is in use when all have left | 0 | kept |" in done.stdout


def run(pace: float, *, clients_cores: float = 0.04, failures: tuple[str, ...] = ()) -> dict[str, Any]:
    times = {"first_p50_s": 0.1, "gap_p50_s": 0.02}
    used = {"engine_cores": 1.8, "generator_cores": clients_cores, "left": 1, "garbage": 1, "requests": 9}
    return {"tokens_s_each": pace, "failures": list(failures), **times, **used}


def broken(beside: list[dict[str, Any]]) -> list[str]:
    result = {"runs": {"all behave": [run(30.0)] * 3, "some do not": beside}}
    return [each["found"] for each in judge(result) if not each["kept"]]


def test_a_share_is_what_as_many_clients_that_behave_get() -> None:
    assert broken([run(30.0)] * 3) == []
    assert broken([run(28.5)] * 3) == ["0.950, where the clients left 1.000"]
    assert broken([run(28.5, clients_cores=0.1)] * 3) == []  # the clients themselves took it
    assert broken([run(28.5), run(30.0), run(31.0)]) == []
    assert broken([run(30.0), run(30.0), run(30.0, failures=("timeout",))]) == ["1 of 54"]
