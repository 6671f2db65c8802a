"""`puna bench`: real runs of a tiny model, short. What figures are made of is promised, never their size."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from puna.bench.limits import measure_limits
from puna.bench.machine import MachineWatch
from puna.bench.step_profile import PROMPTS, SINGLES
from puna.bench.workload import Workload
from puna.kernels.cpu import paths
from puna.plan.profiles import step_times
from puna.workloads.spread import percentile, spread
from tests.cli.process import COMMAND, ROOT, puna

SHORT = ["--input-len", "20", "--output-len", "6", "--repeats", "2"]


def measured(path: Path, *arguments: str) -> Any:
    done = puna("bench", *arguments, "--json", str(path))
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


def test_latency_is_of_one_stream_and_says_what_ran_beside_it(tiny_model: Path, tmp_path: Path) -> None:
    report = measured(tmp_path / "out.json", "latency", "-m", str(tiny_model), *SHORT)
    assert (report["workload"]["sequences"], report["workload"]["output_len"]) == (1, 6)
    assert all(len(figure["values"]) == 2 for figure in report["latency"].values())
    p50, p90, p99 = (report["latency"][f"token_ms_p{n}"]["median"] for n in (50, 90, 99))
    assert 0 < p50 <= p90 <= p99
    machine = report["machine"]
    assert {"load_1m_before", "others_share", "steal_share", "busy_processes"} <= set(machine)
    assert 0 <= machine["others_share"] <= 1
    assert report["target"]["path"] in paths()


def test_throughput_counts_all_tokens_and_the_cache_only_what_is_shared(tiny_model: Path, tmp_path: Path) -> None:
    command = ["throughput", "-m", str(tiny_model), "-s", "3", *SHORT]
    alone = measured(tmp_path / "a.json", *command)["throughput"]
    for rate, wall in zip(alone["output_tokens_per_s"]["values"], alone["wall_s"]["values"], strict=True):
        assert rate * wall == pytest.approx(3 * 6)
    assert alone["cached_tokens"]["high"] == 0
    shared = measured(tmp_path / "b.json", *command, "--shared-len", "64", "-t", "1", "--top-p", "0.9")
    assert shared["throughput"]["cached_tokens"]["low"] <= 2 * 64
    assert shared["workload"]["temperature"] == 1


def test_prefill_takes_one_figure_a_length(tiny_model: Path, tmp_path: Path) -> None:
    report = measured(tmp_path / "out.json", "prefill", "-m", str(tiny_model), "-l", "16,40", "-r", "2")
    assert [figure["input_len"] for figure in report["prefill"]] == [16, 40]
    for figure in report["prefill"]:
        for rate, seconds in zip(figure["tokens_per_s"]["values"], figure["seconds"]["values"], strict=True):
            assert rate * seconds == pytest.approx(figure["input_len"])


def test_kernels_names_every_kind_of_operator_beside_its_bound(tiny_model: Path, tmp_path: Path) -> None:
    report = measured(tmp_path / "out.json", "kernels", "-m", str(tiny_model), "--threads", "1")
    names = {figure["kernel"] for figure in report["kernels"]}
    feed_forward = "feed_forward, gated" if paths()[0] == "amx" else "feed_forward.down"
    assert {"attend", feed_forward, "output head", "whole step"} <= names
    bounds = ("memory", "int8", "f32", "bf16_tiles")
    assert all(figure["share"] > 0 and figure["bound"] in bounds for figure in report["kernels"])
    head = next(figure for figure in report["kernels"] if figure["kernel"] == "output head")
    assert head["operations"] == 2 * 64 * 300 + 4 * 64  # a row into the vocabulary, and its norm
    assert report["limits"]["operations_per_s"]["f32"] > 0


def test_layouts_are_measured_beside_their_bound_and_beside_q4_1(tmp_path: Path) -> None:
    report = measured(
        tmp_path / "out.json", "layouts", "--types", "q6_k", "--rows", "1,3", "--threads", "1", "--isa", paths()[0]
    )
    figures = report["layouts"]
    assert [(each["type"], each["rows"]) for each in figures] == [("Q4_1", 1), ("Q6_K", 1), ("Q4_1", 3), ("Q6_K", 3)]
    q4_1, q6_k = figures[:2]
    assert q4_1["beside"] == 1
    assert q6_k["beside"] == pytest.approx(q6_k["share"] / q4_1["share"])
    assert (q6_k["bits"], q6_k["packed_bits"]) == (6.5625, 6.5625)  # nothing is widened when it is packed
    assert all(figure["share"] > 0 and figure["bound"] in ("memory", "int8", "bf16_tiles") for figure in figures)


def test_a_server_is_measured_by_the_same_command(tiny_model: Path, tmp_path: Path) -> None:
    serving = subprocess.Popen(
        [*COMMAND, "serve", str(tiny_model), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    try:
        assert serving.stdout is not None
        url = next(word for line in serving.stdout for word in line.split() if word.startswith("http://"))
        report = measured(tmp_path / "out.json", "throughput", "--url", url, "-s", "3", *SHORT)
        assert report["target"]["url"] == url
        assert report["throughput"]["output_tokens_per_s"]["low"] > 0
        asked_too_much = puna("bench", "latency", "--url", url, "-i", "300", "-o", "4", "-r", "1")
        assert asked_too_much.returncode == 1
        assert "400" in asked_too_much.stderr
    finally:
        serving.terminate()
        serving.communicate(timeout=60)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["latency", "-o", "1"], 2, "--output-len"),
        (["throughput", "-s", "0"], 2, "--sequences"),
        (["throughput", "-t", "-1"], 2, "--temperature"),
        (["prefill", "-l", "16,many"], 2, "--lengths"),
        (["prefill", "-l", "0"], 2, "--lengths"),
        (["latency", "--url", "localhost"], 1, "http://127.0.0.1:8000"),
        (["latency", "--url", "http://127.0.0.1:9"], 1, "cannot reach"),
        (["kernels", "--isa", "z80"], 1, "portable"),
        (["kernels", "--threads", "1000"], 1, "threads"),
        (["layouts", "--types", "Q4_1,Q9_9"], 2, "IQ4_XS"),
        (["layouts", "--rows", "0"], 2, "--rows"),
        (["latency", "--json", "/nowhere/at/all.json"], 1, "/nowhere/at/all.json"),
    ],
)
def test_a_bad_request_is_refused_before_anything_is_measured(arguments: list[str], code: int, said: str) -> None:
    done = puna("bench", *arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_more_tokens_than_the_context_holds_are_refused_with_the_numbers(tiny_model: Path) -> None:
    done = puna("bench", "latency", "-m", str(tiny_model), "-i", "300")
    assert done.returncode == 1
    assert "256" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_prompts_share_what_was_asked_for_and_nothing_else() -> None:
    workload = Workload(sequences=4, input_len=30, output_len=2, shared_len=10)
    first, again, other = workload.prompts(0, 300), workload.prompts(0, 300), workload.prompts(1, 300)
    assert first == again
    assert len({tuple(prompt[:10]) for prompt in first}) == 1
    assert len({tuple(prompt[10:26]) for prompt in first + other}) == 8
    assert first[0][:10] != other[0][:10]
    assert all(len(prompt) == 40 and max(prompt) < 300 for prompt in first)


def test_a_busy_neighbour_is_seen_and_named() -> None:
    watch = MachineWatch()
    spin = "import os, time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ntime.sleep(60)"
    # A grandchild whose parent is gone is nobody of ours.
    script = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {spin!r}]).pid, flush=True)"
    started = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    pid = int(started.stdout.readline())
    started.wait()
    started.stdout.readline()
    report = watch.report()
    subprocess.run(["kill", str(pid)], check=True)
    assert pid in [process.pid for process in report.busy_processes]
    assert report.others_share > 0


@pytest.mark.parametrize("path", paths())
def test_limits_are_measured_on_every_path(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puna.bench.limits.REPEATS", 1)  # of which the best counts, for people
    limits = measure_limits(path, 1)
    assert {"int8", "f32"} <= set(limits.operations_per_s)
    small, large = limits.read[0], limits.read[-1]
    between = limits.read_bytes_per_s((small.working_bytes * limits.read[1].working_bytes) ** 0.5)
    assert min(p.bytes_per_s for p in limits.read[:2]) <= between <= max(p.bytes_per_s for p in limits.read[:2])
    assert limits.read_bytes_per_s(1) == small.bytes_per_s
    assert limits.read_bytes_per_s(1 << 50) == large.bytes_per_s
    seconds, bound = limits.least_seconds(1e9, 1.0, "f32", 1e9)
    assert (bound, seconds) == ("memory", 1e9 / large.bytes_per_s)
    assert limits.least_seconds(1.0, 1e12, "f32", 1.0)[1] == "f32"
    assert limits.barrier_s > 0
    assert limits.dispatch_s > 0


def test_spreads_and_percentiles() -> None:
    found = spread([3.0, 1.0, 2.0])
    assert (found.median, found.low, found.high, found.share) == (2.0, 1.0, 3.0, 1.0)
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.0
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.99) == 4.0
    assert math.isnan(percentile([], 0.5))


def test_step_times_of_this_machine_are_what_the_simulator_reads(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "steps.json"
    done = puna("bench", "steps", "-m", str(tiny_model), "--json", str(out))
    assert done.returncode == 0, done.stderr
    times = step_times(str(out))
    assert times.name == str(tiny_model)
    assert [tokens for tokens, _ in times.points] == sorted({*SINGLES, *PROMPTS})
    assert "tokens of a step" in done.stdout
