"""`/metrics`: read by Prometheus' own parser from a real server, through restarts of its engine."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.process import ServerProcess

Figures = dict[str, float]
DASHBOARD = {  # what dashboards for vLLM ask for
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "num_preemptions_total",
    "prompt_tokens_total",
    "generation_tokens_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "time_to_first_token_seconds_count",
    "inter_token_latency_seconds_count",
    "request_time_per_output_token_seconds_count",
    "e2e_request_latency_seconds_count",
    "request_queue_time_seconds_count",
    "request_prefill_time_seconds_count",
    "request_decode_time_seconds_count",
    "request_prompt_tokens_count",
    "request_generation_tokens_count",
    "iteration_tokens_total_count",
}


@pytest.fixture(scope="module")
def own_server(patient_model: Path) -> Iterator[ServerProcess]:
    running = ServerProcess.start(str(patient_model), "--name", "tiny", "--kv-gib", "0.05", "--metrics-names", "vllm")
    yield running
    running.kill()


def figures(server: ServerProcess) -> Figures:
    """Names, with the label that tells samples of a family apart, and values."""
    response = httpx.get(f"{server.url}/metrics", verify=False)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found: Figures = {}
    for family in text_string_to_metric_families(response.text):
        assert family.documentation
        for sample in family.samples:
            assert sample.labels.pop("model_name") == "tiny"
            sample.labels.pop("engine", None)
            found["/".join([sample.name, *sample.labels.values()])] = sample.value
    return found


def difference(after: Figures, before: Figures) -> Figures:
    return {name: value - before.get(name, 0) for name, value in after.items()}


def ask(server: ServerProcess, **changes: object) -> None:
    body = {"prompt": list(range(10, 50)), "max_tokens": 12, "temperature": 0, "ignore_eos": True} | changes
    assert server.post("/v1/completions", body).status_code == 200


def test_tokens_times_and_ends_of_requests_are_counted(server: ServerProcess) -> None:
    server.wait_until_idle()
    before = figures(server)
    ask(server)
    ask(server, n=2)
    server.events("/v1/completions", {"prompt": [5] * 20, "max_tokens": 1, "ignore_eos": True})
    server.wait_until_idle()
    found = difference(figures(server), before)
    assert found["puna:prompt_tokens_total"] == 40 + 40 + 20
    assert found["puna:generation_tokens_total"] == 12 + 2 * 12 + 1
    assert found["puna:request_success_total/length"] == 1 + 2 + 1
    assert found["puna:request_success_total/abort"] == 0
    assert found["puna:time_to_first_token_seconds_count"] == 4
    assert found["puna:inter_token_latency_seconds_count"] == 3 * 11
    assert found["puna:request_time_per_output_token_seconds_count"] == 3
    assert found["puna:request_prompt_tokens_count"] == 3
    assert found["puna:request_prompt_tokens_bucket/50"] == 3
    assert found["puna:request_prompt_tokens_bucket/20"] == 1
    assert found["puna:request_generation_tokens_sum"] == 37
    assert found["puna:prefix_cache_hits_total"] > 0  # the second request has the prompt of the first
    assert found["puna:iteration_tokens_total_count"] == found["puna:steps_total"] >= 2 * 12
    assert found["puna:iteration_tokens_total_sum"] == found["puna:computed_tokens_total"]
    for phase in ("schedule", "prepare", "forward", "sample", "deliver", "transport"):
        assert found[f"puna:step_seconds_total/{phase}"] > 0
    whole, first = (
        found[f"puna:{name}_sum"] for name in ("e2e_request_latency_seconds", "time_to_first_token_seconds")
    )
    assert whole > first > 0


def test_an_answer_that_its_client_left_is_no_length_and_no_stop(server: ServerProcess) -> None:
    before = figures(server)
    body = {"prompt": "once", "max_tokens": 200, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, verify=False) as response:
        next(response.iter_lines())
    deadline = time.monotonic() + 30
    while difference(figures(server), before)["puna:request_success_total/abort"] != 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert difference(figures(server), before)["puna:e2e_request_latency_seconds_count"] == 0


def test_a_refused_request_counts_as_nothing_else(server: ServerProcess) -> None:
    before = figures(server)
    assert server.post("/v1/completions", {"prompt": "x", "temperature": -1}).status_code == 400
    found = difference(figures(server), before)
    assert found["puna:prompt_tokens_total"] == 0
    assert found["puna:request_success_total/error"] == 0


def test_dashboards_for_vllm_find_their_names(own_server: ServerProcess) -> None:
    found = figures(own_server)
    assert {f"vllm:{name}" for name in DASHBOARD} <= set(found)
    assert "puna:engine_restarts_total" in found
    assert not any(name.startswith("puna:num_requests") for name in found)


def test_no_counter_goes_backwards_when_the_engine_is_replaced(own_server: ServerProcess) -> None:
    ask(own_server, max_tokens=50)
    before = figures(own_server)
    os.kill(own_server.engine_pid, signal.SIGKILL)
    ask(own_server, max_tokens=50)
    own_server.wait_until_idle()
    after = figures(own_server)
    gauges = ("vllm:num_", "vllm:kv_", "puna:engine_up")
    fallen = {name for name in before if after[name] < before[name] and not name.startswith(gauges)}
    assert fallen == set()
    assert after["puna:engine_restarts_total"] == before["puna:engine_restarts_total"] + 1
    assert after["puna:steps_total"] >= before["puna:steps_total"] + 50
    assert after["vllm:generation_tokens_total"] == before["vllm:generation_tokens_total"] + 50


def test_an_administrative_key_keeps_the_figures_to_those_who_have_it(tiny_model: Path) -> None:
    guarded = ServerProcess.start(str(tiny_model), "--backend", "reference", env={"PUNA_ADMIN_KEY": "open-sesame"})
    try:
        assert httpx.get(f"{guarded.url}/metrics", verify=False).status_code == 401
        key = {"authorization": "Bearer open-sesame"}
        assert httpx.get(f"{guarded.url}/metrics", headers=key, verify=False).status_code == 200
    finally:
        guarded.kill()
