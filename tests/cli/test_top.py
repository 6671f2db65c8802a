"""`puna top` on a real server: at a terminal, on a pipe, for programs; and what its figures are made of."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
from rich.console import Console

from puna.cli.top import _forget_old, _table
from puna.server.scrape import Percentiles, Reading, Vitals, parse, percentiles_of, vitals
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


@pytest.mark.parametrize(("option", "said"), [("--once", "since the start"), ("--json", '"restarts":')])
def test_a_terminal_gets_one_frame_where_that_is_asked_for(busy_server: ServerProcess, option: str, said: str) -> None:
    terminal = Terminal("top", busy_server.url, "--interval", "0.1", option)
    try:
        terminal.wait_for(said)
        assert terminal.exit_code() == 0
    finally:
        terminal.kill()


def test_a_server_that_goes_and_comes_back_is_shown_again_and_not_mixed_with_the_first(
    busy_server: ServerProcess, tiny_model: Path
) -> None:
    """The second one has a key, and has done less by then: its counters begin anew."""
    port = urlsplit(busy_server.url).port
    assert port is not None
    terminal = Terminal("top", busy_server.url, "--interval", "0.1", "--api-key", "secret")
    second: ServerProcess | None = None
    try:
        terminal.wait_for("nothing yet")
        busy_server.post("/v1/completions", BODY)
        terminal.wait_for("p50")
        busy_server.kill()
        terminal.wait_for("is the server running?")
        options = ["--name", "second", "--backend", "reference", "--api-key", "secret"]
        second = ServerProcess.start(str(tiny_model), *options, port=port)
        terminal.wait_for("second")
        assert second.post("/v1/completions", BODY, authorization="Bearer secret").status_code == 200
        terminal.wait_for("p50")
        refused = puna("top", second.url, "--once")
        assert refused.returncode == 1
        assert "answers 401; --api-key gives a key" in refused.stderr
        terminal.press_ctrl_c()
        assert terminal.exit_code() == 0
    finally:
        terminal.kill()
        if second is not None:
            second.kill()


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


def test_only_readings_of_the_window_are_kept_and_the_newest_before_it() -> None:
    readings = deque(reading(at_s, 0, (0, 0, 0)) for at_s in (0, 1, 2, 61, 61.5))
    _forget_old(readings)
    assert [one.at_s for one in readings] == [1, 2, 61, 61.5]
    two = deque(readings[i] for i in (0, 3))
    _forget_old(two)
    assert len(two) == 2, "a rate takes two"


def shown(frame: Vitals, url: str = "http://host") -> dict[str, str]:
    """A frame's rows by their names."""
    console = Console(width=150, file=io.StringIO(), record=True)
    console.print(_table(frame, url))
    lines = console.export_text().splitlines()
    return {line[:17].strip(): line[17:].strip() for line in lines}


def test_a_frame_says_what_the_figures_say() -> None:
    frame = Vitals(
        model="m\x1b[31m",
        engine_up=False,
        running=3,
        waiting=4,
        kv_share=0.5,
        output_tokens_per_s=1234.4,
        prompt_tokens_per_s=56.0,
        answers_per_s=7.25,
        window_s=60.2,
        first_token_s=Percentiles(0.0123, 1.5, 12.0, 9),
        token_gap_s=None,
        prefix_hit_share=0.25,
        preemptions=5,
        restarts=2,
        step_s=0.02,
        phase_shares={"forward": 0.9, "sample": 0.1},
    )
    assert shown(frame) == {
        "server": r"http://host  m\x1b[31m  the engine is being started again",
        "requests": "3 running, 4 waiting, 7.2 answers/s",
        "tokens/s": "1,234 out, 56 in",
        "first token": "p50 12.3 ms  p90 1.50 s  p99 12.00 s  (last 60 s)",
        "between tokens": "nothing yet  (last 60 s)",
        "a step": "20.0 ms: forward 90%, sample 10%  (last 60 s)",
        "KV memory": "█" * 15 + "·" * 15 + " 50%",
        "prefix hits": "█" * 8 + "·" * 22 + " 25%  (last 60 s)",
        "since the start": "5 preemptions, 2 restarts of the engine",
    }
    silent = msgspec.structs.replace(
        frame, engine_up=None, window_s=None, kv_share=None, prefix_hit_share=None, restarts=None, step_s=None
    )
    rows = shown(silent, "http://host/\x1b[2J")
    assert rows["server"] == r"http://host/\x1b[2J  m\x1b[31m"
    assert rows["first token"].endswith("(since the start)")
    assert (rows["KV memory"], rows["prefix hits"], rows["a step"]) == ("unknown", "none asked", "none yet")
    assert rows["since the start"] == "5 preemptions"


def test_what_a_server_tells_becomes_its_vitals() -> None:
    text = """puna:num_requests_running{model_name="m"} 3
puna:num_requests_waiting{model_name="m"} 4
puna:kv_cache_usage_perc{model_name="m"} 0.5
puna:generation_tokens_total{model_name="m"} %d
puna:prompt_tokens_total{model_name="m"} %d
puna:request_success_total{model_name="m",finished_reason="stop"} %d
puna:prefix_cache_queries_total{model_name="m"} %d
puna:prefix_cache_hits_total{model_name="m"} %d
puna:num_preemptions_total{model_name="m"} 6
puna:engine_up{model_name="m"} 0
puna:engine_restarts_total{model_name="m"} 2
puna:steps_total{model_name="m"} %d
puna:step_seconds_total{model_name="m",phase="forward"} %d
puna:step_seconds_total{model_name="m",phase="sample"} %d
puna:inter_token_latency_seconds_bucket{model_name="m",le="1"} %d
puna:inter_token_latency_seconds_bucket{model_name="m",le="+Inf"} %d"""
    before = parse(text % (100, 200, 10, 1000, 900, 5, 50, 50, 7, 7), 0.0)
    now = parse(text % (300, 240, 12, 1100, 925, 15, 59, 51, 8, 11), 10.0)
    found = vitals([before, now], window_s=5.0)
    assert (found.model, found.engine_up, found.running, found.waiting, found.kv_share) == ("m", False, 3, 4, 0.5)
    assert (found.output_tokens_per_s, found.prompt_tokens_per_s, found.answers_per_s) == (20, 4, 0.2)
    assert (found.prefix_hit_share, found.preemptions, found.restarts) == (0.25, 6, 2)
    assert (found.step_s, found.phase_shares) == (1.0, {"forward": 0.9, "sample": 0.1})
    assert found.token_gap_s == Percentiles(1.0, 1.0, 1.0, 4)
    since_start = vitals([before, now])
    assert since_start.prefix_hit_share == 925 / 1100
    assert since_start.token_gap_s is not None
    assert since_start.token_gap_s.count == 11
    assert since_start.first_token_s is None


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
