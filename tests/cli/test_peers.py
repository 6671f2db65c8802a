"""The comparison with peers, without any: how bars are judged, and that the page says what the JSON says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peer_bars import judge, table, verdicts
from tests.cli.process import ROOT, puna

ENGINES = {
    "Puna": {"decode1": [300.0, 330.0, 360.0], "shared32": [1.0, 1.0, 1.0], "batch32": [100.0], "memory": [151.0]},
    "vLLM bf16": {"shared32": [4.0, 2.0, 3.5]},
    "llama.cpp Q4_0, a": {"decode1": [100.0, 110.0, 90.0]},
    "llama.cpp Q4_0, b": {"decode1": [200.0, 220.0, 180.0]},
}


def judged(figure: str) -> dict[str, Any]:
    (found,) = [entry for entry in judge(ENGINES) if entry["figure"] == figure]
    return found


def test_the_quickest_build_of_a_peer_is_the_one_that_counts() -> None:
    found = judged("decode1")
    assert found["against"] == "llama.cpp Q4_0, b"
    assert (found["low"], found["median"], found["high"]) == (1.5, 1.5, 2.0)  # within rounds: 300/200, 330/220, 360/180
    assert found["holds"]


def test_where_less_is_better_the_ratio_is_the_other_way_round() -> None:
    found = judged("shared32")
    assert (found["low"], found["median"], found["high"], found["holds"]) == (2.0, 3.5, 4.0, True)


def test_a_bar_without_a_peer_is_a_limit_and_one_whose_peer_is_absent_is_not_judged() -> None:
    assert judged("memory")["holds"] is False
    assert "batch32" not in {entry["figure"] for entry in judge(ENGINES)}
    assert "at most 150 | 151" in verdicts(judge(ENGINES))


def test_the_table_shows_medians_with_least_and_most() -> None:
    row = next(line for line in table(ENGINES).splitlines() if line.startswith("| decode, one stream"))
    assert row == "| decode, one stream, tokens/s | 330 (300 to 360) |  | 100 (90.0 to 110) | 200 (180 to 220) |"


def peers(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/peers.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_the_page_is_filled_from_the_json_between_its_marks(tiny_model: Path, tmp_path: Path) -> None:
    kernels = tmp_path / "kernels.json"
    done = puna("bench", "kernels", "-m", str(tiny_model), "--threads", "1", "--json", str(kernels))
    assert done.returncode == 0, done.stderr
    report = json.loads(kernels.read_text())
    result = {
        "model": "tiny.gguf",
        "engines": ENGINES,
        "facts": {},
        "failures": {"vLLM bf16": "it went away"},
        "rounds": [report["machine"]],
        "judged": judge(ENGINES),
        "kernels": report,
    }
    source, page = tmp_path / "peers.json", tmp_path / "page.md"
    source.write_text(json.dumps(result))
    page.write_text("before\n<!-- measured: begin -->\nstale table\n<!-- measured: end -->\nafter\n")
    done = peers("--from", str(source), "--page", str(page))
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "stale table" not in text
    assert "330 (300 to 360)" in text
    assert "it went away" in text
    assert "| attend |" in text
    again = page.read_text()
    assert peers("--from", str(source), "--page", str(page)).returncode == 0
    assert page.read_text() == again
    page.write_text("no marks")
    refused = peers("--from", str(source), "--page", str(page))
    assert refused.returncode == 1
    assert "measured: begin" in refused.stderr


@pytest.mark.parametrize("arguments", [[], ["--model", "nowhere.gguf"], ["--model", "README.md", "--rounds", "0"]])
def test_without_a_model_or_a_round_there_is_nothing_to_measure(arguments: list[str]) -> None:
    done = peers(*arguments)
    assert done.returncode == 2
    assert "error: --" in done.stderr


def test_the_plot_holds_every_kernel(tiny_model: Path, tmp_path: Path) -> None:
    from benchmarks.roofline import draw

    kernels, plot = tmp_path / "kernels.json", tmp_path / "plot.svg"
    assert puna("bench", "kernels", "-m", str(tiny_model), "--threads", "1", "--json", str(kernels)).returncode == 0
    report = json.loads(kernels.read_text())
    draw(report, plot)
    text = plot.read_text()
    assert all(f"<!-- {figure['kernel']} -->" in text for figure in report["kernels"])


def served(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/serve_peers.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)


def test_servers_are_measured_and_judged_with_whoever_is_there(patient_model: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- served: begin -->\nwhat was there\n<!-- served: end -->\nafter\n")
    missing = tmp_path / "nothing"
    common = ["--work", str(tmp_path), "--page", str(page)]
    done = served("--model", str(patient_model), "--rounds", "1", "--scale", "0.01", "--llama", str(missing), *common)
    assert done.returncode == 0, done.stderr
    assert f"{missing} is left out" in done.stderr
    result = json.loads((tmp_path / "served.json").read_text())
    assert result["errors"] == {}
    figures = result["engines"]["Puna"]
    wanted = {"serve1", "serve8", "serve32", "ttft99", "prefix32", "http_us", "engine_share", "ready"}
    assert set(figures) == wanted
    assert all(values[0] >= 0 for values in figures.values())
    assert {entry["figure"] for entry in result["judged"]} == {"http_us", "engine_share", "ready"}  # nobody to compare
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "a trial" in text
    assert "what was there" not in text
