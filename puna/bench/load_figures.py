"""From the requests of a load to figures: percentiles, pace, goodput under an objective, errors by kind.

Knows exchanges, no server. The structs here are what `--json` writes, every request included.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import msgspec

from puna.bench.figures import Target
from puna.bench.load import Load
from puna.bench.load_run import Exchange, LoadRun
from puna.bench.machine import MachineReport
from puna.errors import InputError
from puna.workloads.spread import percentile

OBJECTIVES = {"ttft": "first_s", "tpot": "token_s", "e2e": "whole_s"}


class Distribution(msgspec.Struct, frozen=True):
    """Of seconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    high: float


class Goodput(msgspec.Struct, frozen=True):
    """Requests that met all of `objective` (seconds), as a share of all that were sent, failed ones included."""

    objective: dict[str, float]
    share: float
    requests_per_s: float


class Generator(msgspec.Struct, frozen=True):
    """What measuring itself took. `late_s`: sent after it was due; a generator that is late measures itself."""

    processor_share: float
    processor_us_per_token: float
    late_s: Distribution | None


class LoadFigures(msgspec.Struct, frozen=True, kw_only=True):
    """`token_s`: a request's mean time between tokens; `gap_s`: between pieces of text. Failed requests are in `errors`
    only. Rates are over the whole run; `requests` counts those that ended well and are not left out."""

    requests: int
    failed: int
    errors: dict[str, int]
    wall_s: float
    requests_per_s: float
    output_tokens_per_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    first_s: Distribution | None
    token_s: Distribution | None
    gap_s: Distribution | None
    whole_s: Distribution | None
    goodput: Goodput | None
    generator: Generator


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    target: Target
    machine: MachineReport
    load: Load
    figures: LoadFigures
    examples: dict[str, str]  # of each kind of error, what was said
    cut: int  # sessions whose lengths were cut to max_len
    exchanges: list[Exchange]


def parse_objective(text: str) -> dict[str, float]:
    """'ttft=0.5,tpot=0.05' in seconds. InputError for what is none."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if name not in OBJECTIVES or not seconds > 0:
            raise InputError(f"{part!r} is no objective; try ttft=0.5,tpot=0.05,e2e=10 (seconds)", param="slo")
        found[name] = seconds
    return found


def figures_of(run: LoadRun, objective: dict[str, float] | None) -> LoadFigures:
    counted = [exchange for exchange in run.exchanges if exchange.counts]
    good = [exchange for exchange in counted if exchange.error is None]
    wall_s = max(1e-9, run.wall_s)
    everything = sum(exchange.output_tokens for exchange in run.exchanges)
    errors = Counter(exchange.error for exchange in run.exchanges if exchange.error is not None)
    goodput = None
    if objective:
        met = sum(_meets(exchange, objective) for exchange in good)
        goodput = Goodput(objective, met / max(1, len(counted)), met / wall_s)
    return LoadFigures(
        requests=len(good),
        failed=sum(errors.values()),
        errors=dict(errors.most_common()),
        wall_s=run.wall_s,
        requests_per_s=sum(exchange.error is None for exchange in run.exchanges) / wall_s,
        output_tokens_per_s=everything / wall_s,
        prompt_tokens=sum(exchange.prompt_tokens for exchange in run.exchanges),
        output_tokens=everything,
        cached_tokens=sum(exchange.cached_tokens for exchange in run.exchanges),
        first_s=distribution(exchange.first_s for exchange in good),
        token_s=distribution(exchange.token_s for exchange in good if exchange.output_tokens > 1),
        gap_s=distribution(gap for exchange in good for gap in exchange.gaps_s),
        whole_s=distribution(exchange.whole_s for exchange in good),
        goodput=goodput,
        generator=Generator(
            run.processor_s / wall_s,
            1e6 * run.processor_s / max(1, everything),
            distribution(exchange.late_s for exchange in run.exchanges),
        ),
    )


def examples_of(run: LoadRun) -> dict[str, str]:
    found: dict[str, str] = {}
    for exchange in run.exchanges:
        if exchange.error is not None:
            found.setdefault(exchange.error, exchange.detail)
    return found


def distribution(values: Iterable[float]) -> Distribution | None:
    known = sorted(values)
    if not known:
        return None
    at = [percentile(known, share) for share in (0.5, 0.9, 0.99)]
    return Distribution(sum(known) / len(known), at[0], at[1], at[2], known[-1])


def _meets(exchange: Exchange, objective: dict[str, float]) -> bool:
    return all(getattr(exchange, OBJECTIVES[name]) <= seconds for name, seconds in objective.items())
