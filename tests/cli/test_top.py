"""`puna top` on a real server: at a terminal, on a pipe, for programs; and what its figures are made of."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from puna.server.scrape import Reading, parse, percentiles_of, vitals
from tests.cli.process import Terminal, puna
from tests.server.process import ServerProcess

BODY = {"prompt": [7] * 40, "max_tokens": 20, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def busy_server(tiny_model: Path) -> Iterator[ServerProcess]:
    server = ServerProcess.start(str(tiny_model), "--name", "small", "--backend", "reference")
    for _ in range(3):
        assert server.post("/v1/completions", BODY).status_code == 200
    yield server
    server.kill()


def test_programs_get_one_frame_as_json(busy_server: ServerProcess) -> None:
    done = puna("top", busy_server.url, "--once", "--json", "--interval", "0.2")
    assert done.returncode == 0, done.stderr
    frame = json.loads(done.stdout)
    assert (frame["model"], frame["engine_up"], frame["running"], frame["waiting"]) == ("small", True, 0, 0)
    assert frame["first_token_s"]["count"] == 3
    assert frame["token_gap_s"]["count"] == 3 * 19
    assert 0 < frame["token_gap_s"]["p50"] <= frame["token_gap_s"]["p99"]
    assert frame["window_s"] is None
    assert 0 < frame["prefix_hit_share"] < 1
    assert frame["restarts"] == 0
    assert list(frame["phase_shares"]) == ["schedule", "prepare", "forward", "sample", "deliver", "transport"]
    assert sum(frame["phase_shares"].values()) == pytest.approx(1)
    assert 0 < frame["phase_shares"]["sample"] < 1
    assert frame["step_s"] > 0


def test_a_pipe_gets_one_plain_frame(busy_server: ServerProcess) -> None:
    done = puna("top", busy_server.url + "/v1", "--interval", "0.1")
    assert done.returncode == 0, done.stderr
    assert "0 running, 0 waiting" in done.stdout
    assert ", sample " in done.stdout
    assert "\x1b" not in done.stdout


def test_a_terminal_sees_it_live_until_ctrl_c(busy_server: ServerProcess) -> None:
    terminal = Terminal("top", busy_server.url, "--interval", "0.1")
    try:
        terminal.wait_for("0 restarts")
        busy_server.post("/v1/completions", BODY)
        terminal.wait_for("p50")  # of what was observed while it looked
        os.kill(busy_server.engine_pid, signal.SIGKILL)
        terminal.wait_for("1 restarts")
        terminal.press_ctrl_c()
        assert terminal.exit_code() == 0
    finally:
        terminal.kill()


@pytest.mark.parametrize(
    ("url", "said"),
    [("localhost", "try http://127.0.0.1:8000"), ("http://127.0.0.1:9", "is the server running?")],
)
def test_a_server_that_is_not_there_is_one_line(url: str, said: str) -> None:
    done = puna("top", url, "--once")
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def reading(at_s: float, tokens: float, counts: tuple[float, float, float]) -> Reading:
    bounds = dict(zip((0.1, 1.0, math.inf), counts, strict=True))
    return Reading(at_s, "m", {"generation_tokens_total": tokens}, {"time_to_first_token_seconds": bounds})


def test_rates_and_percentiles_are_of_their_windows() -> None:
    readings = [reading(0, 0, (0, 0, 0)), reading(50, 500, (90, 90, 90)), reading(100, 1000, (90, 100, 100))]
    found = vitals([*readings, reading(110, 2000, (90, 100, 100))], window_s=60, rate_s=5)
    assert found.output_tokens_per_s == 100
    assert found.first_token_s is not None
    assert found.first_token_s.count == 10
    assert 0.1 < found.first_token_s.p50 < found.first_token_s.p99 <= 1.0
    assert found.window_s == 60


def test_percentiles_of_nothing_are_none_and_above_the_last_bound_are_the_bound() -> None:
    assert percentiles_of({1.0: 5, math.inf: 5}, {1.0: 5, math.inf: 5}) is None
    above = percentiles_of({1.0: 0, math.inf: 4}, {})
    assert above is not None
    assert above.p50 == 1.0


def test_figures_of_vllm_are_read_like_ours_and_other_lines_are_left_out() -> None:
    text = """# HELP vllm:num_requests_running x
vllm:num_requests_running{engine="0",model_name="a \\"b\\""} 3.0
vllm:request_success_total{finished_reason="stop",model_name="a"} 2
vllm:request_success_total{finished_reason="length",model_name="a"} 5 1700000000
vllm:time_to_first_token_seconds_bucket{le="0.5",model_name="a"} 1
vllm:time_to_first_token_seconds_bucket{le="+Inf",model_name="a"} 2
garbage {
x y z"""
    found = parse(text, time.monotonic())
    assert found.values == {"num_requests_running": 3.0, "request_success_total": 7.0}
    assert found.buckets == {"time_to_first_token_seconds": {0.5: 1.0, math.inf: 2.0}}
