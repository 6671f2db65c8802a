"""From runs to figures: medians over repetitions, with what they are made of.

Knows runs and workloads, no engine and no clock. The structs here are what `--json` writes.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from puna.bench.kernels import KernelFigure
from puna.bench.layouts import LayoutFigure
from puna.bench.limits import MachineLimits
from puna.bench.machine import MachineReport
from puna.bench.offline import Run
from puna.bench.workload import Workload
from puna.workloads.spread import Spread, percentile, spread


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured: an engine in this process with these settings, or a server."""

    model: str
    url: str | None = None
    backend: str | None = None
    path: str | None = None
    threads: int | None = None
    compute: str | None = None
    kv_dtype: str | None = None
    budget_tokens: int | None = None


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds of one stream. `token_ms_*`: percentiles of the time between two tokens, one value a repetition;
    `tokens_per_s`: of decoding, the first token left out."""

    first_token_ms: Spread
    token_ms_p50: Spread
    token_ms_p90: Spread
    token_ms_p99: Spread
    tokens_per_s: Spread


class Throughput(msgspec.Struct, frozen=True, kw_only=True):
    """Of a whole run, from the first request to the last token. `decode_tokens_per_s` counts from the moment when every
    sequence had its first token: what peers call the decode part."""

    wall_s: Spread
    output_tokens_per_s: Spread
    total_tokens_per_s: Spread
    decode_tokens_per_s: Spread | None
    first_token_ms_p50: Spread
    first_token_ms_p99: Spread
    cached_tokens: Spread


class Prefill(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from a prompt of `input_len` tokens to its first token, and prompt tokens a second."""

    input_len: int
    seconds: Spread
    tokens_per_s: Spread


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One command's result. Of the figures, those of the command are present."""

    target: Target
    machine: MachineReport
    workload: Workload | None = None
    latency: Latency | None = None
    throughput: Throughput | None = None
    prefill: list[Prefill] = []


class KernelReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine can do and what each kernel does, measured in one run."""

    target: Target
    machine: MachineReport
    limits: MachineLimits
    kernels: list[KernelFigure]


class LayoutReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine can do and what the product with each type of weights does, measured in one run."""

    machine: MachineReport
    limits: MachineLimits
    layouts: list[LayoutFigure]


def latency_of(runs: Sequence[Run]) -> Latency:
    """Of runs of one sequence with two output tokens or more."""

    def gap(share: float) -> Spread:
        return spread(1e3 * percentile(run.gaps_s, share) for run in runs)

    return Latency(
        first_token_ms=spread(1e3 * run.first_s[0] for run in runs),
        token_ms_p50=gap(0.5),
        token_ms_p90=gap(0.9),
        token_ms_p99=gap(0.99),
        tokens_per_s=spread((run.counts[0] - 1) / (run.wall_s - run.first_s[0]) for run in runs),
    )


def throughput_of(workload: Workload, runs: Sequence[Run]) -> Throughput:
    read = workload.sequences * (workload.shared_len + workload.input_len)
    decode = None
    if workload.output_len > 1 and all(run.wall_s > max(run.first_s) for run in runs):
        decode = spread(_decode_rate(run) for run in runs)
    return Throughput(
        wall_s=spread(run.wall_s for run in runs),
        output_tokens_per_s=spread(sum(run.counts) / run.wall_s for run in runs),
        total_tokens_per_s=spread((read + sum(run.counts)) / run.wall_s for run in runs),
        decode_tokens_per_s=decode,
        first_token_ms_p50=spread(1e3 * percentile(run.first_s, 0.5) for run in runs),
        first_token_ms_p99=spread(1e3 * percentile(run.first_s, 0.99) for run in runs),
        cached_tokens=spread(run.cached_tokens for run in runs),
    )


def prefill_of(input_len: int, runs: Sequence[Run]) -> Prefill:
    return Prefill(
        input_len=input_len,
        seconds=spread(run.first_s[0] for run in runs),
        tokens_per_s=spread(input_len / run.first_s[0] for run in runs),
    )


def _decode_rate(run: Run) -> float:
    """Tokens a second once all sequences have their first: those that came later, over the time since."""
    begun = max(run.first_s)
    later = sum(
        count * sum(time > begun for time in times) / len(times)
        for times, count in zip(run.arrivals_s, run.counts, strict=True)
    )
    return later / (run.wall_s - begun)
