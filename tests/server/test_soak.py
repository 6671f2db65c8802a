"""The soak in small: clients that behave see no error while others leave in the middle and send garbage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
    assert result["outcomes"]["answered"] > 50
    assert result["outcomes"]["left"] > 0
    assert result["outcomes"]["garbage"] > 5
    assert "| no block is in use when all have left | 0 | kept |" in done.stdout
