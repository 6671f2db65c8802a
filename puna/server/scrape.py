"""Reads `/metrics` of a running server, ours or vLLM's, and says from several readings how the server is doing.

Knows Prometheus' text format as far as such servers write it, and the names in it; draws nothing. Rates are between two
readings; percentiles are of what was observed between them, interpolated within buckets.
"""

from __future__ import annotations

import math
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from puna.errors import EngineError, InputError

TIMEOUT_S = 5.0
_SAMPLE = re.compile(r"(?:\w+:)?(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)(?: \d+)?")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Reading:
    """`values`: by name without prefix, all labels added up. `buckets`: of histograms, cumulative counts by bound.
    `phases`: seconds of steps by phase."""

    at_s: float
    model: str
    values: dict[str, float] = field(default_factory=dict)
    buckets: dict[str, dict[float, float]] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)


class Percentiles(msgspec.Struct, frozen=True):
    """In seconds."""

    p50: float
    p90: float
    p99: float
    count: int


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """How a server is doing. `window_s`: what percentiles and hits look back on; None: on all since the start. Other
    values are None where the server does not tell, or nothing happened. `step_s`: the mean of steps, and
    what share of it each phase takes."""

    model: str
    engine_up: bool | None
    running: int
    waiting: int
    kv_share: float | None
    output_tokens_per_s: float
    prompt_tokens_per_s: float
    answers_per_s: float
    window_s: float | None
    first_token_s: Percentiles | None
    token_gap_s: Percentiles | None
    prefix_hit_share: float | None
    preemptions: int
    restarts: int | None
    step_s: float | None
    phase_shares: dict[str, float]


def metrics_url(url: str) -> str:
    """The page of figures of a server that is named with or without its path. InputError for what is no address."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(f"{url!r} is not the address of a server; try http://127.0.0.1:8000", param="url")
    path = parts.path.rstrip("/").removesuffix("/metrics").removesuffix("/v1")
    return f"{parts.scheme}://{parts.netloc}{path}/metrics"


def read(url: str, api_key: str | None = None) -> Reading:
    """EngineError where nobody answers there, or not with figures."""
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {api_key}"} if api_key else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            text = answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        hint = "; --api-key gives a key" if error.code in (401, 403) else ""
        raise EngineError(f"{url} answers {error.code}{hint}") from None
    except (OSError, ValueError) as error:
        raise EngineError(f"cannot reach {url}: {getattr(error, 'reason', error)}; is the server running?") from None
    reading = parse(text, time.monotonic())
    if "num_requests_running" not in reading.values:
        raise EngineError(f"{url} has no figures of a server of models")
    return reading


def parse(text: str, at_s: float) -> Reading:
    """Lines that are no samples are left out."""
    values: dict[str, float] = {}
    buckets: dict[str, dict[float, float]] = {}
    phases: dict[str, float] = {}
    model = ""
    for line in text.splitlines():
        if line.startswith("#") or (found := _SAMPLE.fullmatch(line)) is None:
            continue
        labels = dict(_LABEL.findall(found["labels"] or ""))
        model = model or labels.get("model_name", "")
        try:
            name, value = found["name"], float(found["value"])
            if "le" in labels:
                histogram = buckets.setdefault(name.removesuffix("_bucket"), {})
                bound = float(labels["le"])
                histogram[bound] = histogram.get(bound, 0.0) + value
            else:
                values[name] = values.get(name, 0.0) + value
                if name == "step_seconds_total" and "phase" in labels:
                    phases[labels["phase"]] = value
        except ValueError:
            continue
    return Reading(at_s, model, values, buckets, phases)


def vitals(readings: Sequence[Reading], window_s: float | None = None, rate_s: float = 3.0) -> Vitals:
    """From readings in order of time, two at least. Rates are over the last `rate_s` at least, percentiles over the
    last `window_s`, or everything since the server's start."""
    now = readings[-1]
    recent = _reading_before(readings, now.at_s - rate_s)
    far = None if window_s is None else _reading_before(readings, now.at_s - window_s)
    seconds = max(1e-9, now.at_s - recent.at_s)

    def rate(name: str) -> float:
        return max(0.0, now.values.get(name, 0.0) - recent.values.get(name, 0.0)) / seconds

    def since_far(name: str) -> float:
        return now.values.get(name, 0.0) - (0.0 if far is None else far.values.get(name, 0.0))

    def percentiles(name: str) -> Percentiles | None:
        before = {} if far is None else far.buckets.get(name, {})
        return percentiles_of(now.buckets.get(name, {}), before)

    queries = since_far("prefix_cache_queries_total")
    spent = {
        name: seconds - (0.0 if far is None else far.phases.get(name, 0.0)) for name, seconds in now.phases.items()
    }
    spent_s, steps = sum(spent.values()), since_far("steps_total")
    up, restarts = now.values.get("engine_up"), now.values.get("engine_restarts_total")
    return Vitals(
        model=now.model,
        engine_up=None if up is None else bool(up),
        running=int(now.values.get("num_requests_running", 0)),
        waiting=int(now.values.get("num_requests_waiting", 0)),
        kv_share=now.values.get("kv_cache_usage_perc"),
        output_tokens_per_s=rate("generation_tokens_total"),
        prompt_tokens_per_s=rate("prompt_tokens_total"),
        answers_per_s=rate("request_success_total"),
        window_s=None if far is None else now.at_s - far.at_s,
        first_token_s=percentiles("time_to_first_token_seconds"),
        token_gap_s=percentiles("inter_token_latency_seconds"),
        prefix_hit_share=since_far("prefix_cache_hits_total") / queries if queries > 0 else None,
        preemptions=int(now.values.get("num_preemptions_total", 0)),
        restarts=None if restarts is None else int(restarts),
        step_s=spent_s / steps if steps > 0 else None,
        phase_shares={name: seconds / spent_s for name, seconds in spent.items()} if spent_s > 0 else {},
    )


def percentiles_of(after: Mapping[float, float], before: Mapping[float, float]) -> Percentiles | None:
    """Of what was observed between two states of a histogram; None of nothing. What lies above the last bound counts as
    that bound."""
    bounds = sorted(after)
    counts = [after[bound] - before.get(bound, 0.0) for bound in bounds]
    if not counts or counts[-1] <= 0:
        return None

    def at(share: float) -> float:
        wanted, low, below = share * counts[-1], 0.0, 0.0
        for bound, count in zip(bounds, counts, strict=True):
            if count >= wanted:
                if math.isinf(bound):
                    return low
                return low + (bound - low) * (wanted - below) / max(1e-9, count - below)
            low, below = bound, count
        return low

    return Percentiles(at(0.5), at(0.9), at(0.99), int(counts[-1]))


def _reading_before(readings: Sequence[Reading], at_s: float) -> Reading:
    """The newest reading that is at least so old, or the oldest there is; never the last one."""
    return next((reading for reading in reversed(readings[:-1]) if reading.at_s <= at_s), readings[0])
