"""`/metrics`: what is measured, under which name, and where it is read. Everything is read when it is asked for.

Most names are vLLM's behind our prefix, so that its dashboards fit; `--metrics-names vllm` gives those vLLM's prefix.
What vLLM does not have keeps ours. Sums hold through restarts of the engine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Literal

from fastapi import APIRouter
from starlette.responses import Response

import puna
from puna.engine.histogram import STEP_TOKENS, Histogram
from puna.engine.meter import Meter
from puna.engine.stats import EngineStats
from puna.server.exposition import MEDIA_TYPE, Buckets, Family, exposition
from puna.server.serving import Serving

PHASES = ("schedule", "prepare", "forward", "sample", "deliver", "transport")


def metrics_routes(serving: Serving) -> APIRouter:
    router = APIRouter()

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(metrics_text(serving), media_type=MEDIA_TYPE)

    return router


def metrics_text(serving: Serving) -> str:
    common = {"model_name": serving.name}
    if serving.metrics_names == "vllm":
        common["engine"] = "0"
    return exposition(_families(serving), common)


def _families(serving: Serving) -> Iterator[Family]:
    theirs = f"{serving.metrics_names}:"
    yield from _engine_families(serving, theirs)
    yield from _request_families(serving.client.meter, theirs)
    yield from _own_families(serving)


def _engine_families(serving: Serving, prefix: str) -> Iterator[Family]:
    client = serving.client
    stats = client.totals
    scheduler = None if stats is None else stats.scheduler
    is_up = scheduler is not None and client.state == "running"
    running = scheduler.running if scheduler is not None and is_up else 0
    waiting = scheduler.waiting + scheduler.swapped if scheduler is not None and is_up else 0
    used = scheduler.blocks_used / max(1, scheduler.blocks_total) if scheduler is not None and is_up else 0.0
    yield _one(f"{prefix}num_requests_running", "gauge", "Sequences that are computed.", running)
    yield _one(
        f"{prefix}num_requests_waiting", "gauge", "Sequences that wait to be computed.", waiting + client.waiting
    )
    yield _one(f"{prefix}kv_cache_usage_perc", "gauge", "Share of the pool's blocks in use, 0 to 1.", used)
    counted = {
        "num_preemptions_total": ("Sequences that had to give their blocks back.", "preemptions"),
        "prefix_cache_queries_total": ("Prompt tokens looked up in the prefix cache.", "prefix_queries"),
        "prefix_cache_hits_total": ("Prompt tokens found in the prefix cache.", "prefix_hits"),
    }
    for name, (text, figure) in counted.items():
        yield _one(prefix + name, "counter", text, 0 if scheduler is None else getattr(scheduler, figure))
    yield Family(
        f"{prefix}iteration_tokens_total", "histogram", "Tokens computed in a step.", [({}, _step_tokens(stats))]
    )


def _request_families(meter: Meter, prefix: str) -> Iterator[Family]:
    yield _one(f"{prefix}prompt_tokens_total", "counter", "Prompt tokens, cached ones included.", meter.prompt_tokens)
    yield _one(f"{prefix}generation_tokens_total", "counter", "Tokens that clients were sent.", meter.generated_tokens)
    finished: list[tuple[Mapping[str, str], float]] = [
        ({"finished_reason": reason}, count) for reason, count in meter.finished.items()
    ]
    yield Family(f"{prefix}request_success_total", "counter", "Answers that ended, by the reason.", finished)
    histograms = {
        "time_to_first_token_seconds": ("From the request to the first token.", meter.first_token_s),
        "inter_token_latency_seconds": ("Between two tokens of an answer.", meter.token_gap_s),
        "request_time_per_output_token_seconds": ("Mean of an answer's gaps.", meter.token_mean_s),
        "e2e_request_latency_seconds": ("From the request to the end of the answer.", meter.whole_s),
        "request_queue_time_seconds": ("From arrival in the engine to the first step.", meter.queue_s),
        "request_prefill_time_seconds": ("From the first step to the first token.", meter.prefill_s),
        "request_decode_time_seconds": ("From the first token to the last.", meter.decode_s),
        "request_prompt_tokens": ("Tokens of a prompt.", meter.prompt_lengths),
        "request_generation_tokens": ("Tokens of an answer.", meter.answer_lengths),
    }
    for name, (text, histogram) in histograms.items():
        yield Family(prefix + name, "histogram", text, [({}, _buckets(histogram))])


def _own_families(serving: Serving) -> Iterator[Family]:
    client, stats = serving.client, serving.client.totals
    counters = {} if stats is None else stats.counters
    yield Family(
        "puna:step_seconds_total",
        "counter",
        "Time of the engine's steps by phase.",
        [({"phase": phase}, counters.get(f"{phase}_s", 0.0)) for phase in PHASES],
    )
    yield _one("puna:steps_total", "counter", "Steps of the engine.", counters.get("steps", 0))
    yield _one("puna:computed_tokens_total", "counter", "Tokens computed.", counters.get("computed_tokens", 0))
    yield _one("puna:engine_restarts_total", "counter", "Engines that replaced another.", client.restarts)
    yield _one("puna:engine_culprits_total", "counter", "Requests given up because they end engines.", client.culprits)
    yield _one("puna:engine_up", "gauge", "1 while there is an engine.", float(client.state == "running"))
    yield _one(
        "puna:discarded_tokens_total",
        "counter",
        "Tokens drawn for answers that were not returned, by best_of and beam search.",
        client.meter.discarded_tokens,
    )
    yield _one("puna:requests_refused_total", "counter", "Requests the engine turned away.", client.meter.refused)
    yield _one("puna:http_cpu_seconds_total", "counter", "Processor time of the HTTP process.", time.process_time())
    yield Family("puna:build_info", "gauge", "Always 1.", [({"version": puna.__version__}, 1)])


def _one(name: str, kind: Literal["counter", "gauge"], text: str, value: float) -> Family:
    return Family(name, kind, text, [({}, value)])


def _buckets(histogram: Histogram) -> Buckets:
    return Buckets(histogram.bounds, histogram.counts, histogram.total)


def _step_tokens(stats: EngineStats | None) -> Buckets:
    counts = stats.step_tokens if stats is not None and stats.step_tokens else [0] * (len(STEP_TOKENS) + 1)
    return Buckets(STEP_TOKENS, counts, 0 if stats is None else stats.counters["computed_tokens"])
