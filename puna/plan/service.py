"""How far clients' service lies apart: the difference metric of "Fairness in Serving Large Language Models" (2024).

A request's service is its prompt's tokens plus twice its answer's, spread evenly from its first token to its last. In a
window of 60 s each client lacks what the best served has more, but no more than it asked for and did not get; the
difference is the sum of that, in service a second, at ticks over the run. It knows when requests came, began and ended:
of a simulation, or of a recorded run. Only served requests are in it, so refusing makes it small: look at both.
"""

from __future__ import annotations

import csv
import gzip
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from puna.errors import InputError
from puna.plan.simulated import Outcome

WINDOW_S, WARM_UP_S, TICKS = 60.0, 30.0, 19
PROMPT_WEIGHT, ANSWER_WEIGHT = 1.0, 2.0


class Served(msgspec.Struct, frozen=True):
    """A request that was served: seconds of one clock, and the service it got."""

    client: str
    came_s: float
    first_s: float
    last_s: float
    service: float


class Difference(msgspec.Struct, frozen=True):
    """Of the ticks, in service a second; `variance` is that of the ticks themselves."""

    most: float
    mean: float
    variance: float


def service(prompt_tokens: int, answer_tokens: int) -> float:
    return PROMPT_WEIGHT * prompt_tokens + ANSWER_WEIGHT * answer_tokens


def of_outcomes(outcomes: Iterable[Outcome]) -> list[Served]:
    """Those of a simulation that were served, every sample of theirs."""
    found = []
    for outcome in outcomes:
        if outcome.done_s is not None and outcome.first_s is not None:
            request = outcome.request
            done = service(request.prompt_len, request.output_len * request.samples)
            found.append(Served(request.tenant, request.at_s, outcome.first_s, outcome.done_s, done))
    return found


def difference(served: Sequence[Served], duration_s: float) -> Difference | None:
    """`duration_s`: in which requests came. None where that is no longer than the warm-up, or nobody was served."""
    step = (duration_s - WARM_UP_S) / (TICKS + 1)
    if step <= 0 or not served:
        return None
    ticks = [_difference_at(served, step * number) for number in range(1, TICKS + 1)]
    return Difference(max(ticks), statistics.fmean(ticks), statistics.pvariance(ticks))


def _difference_at(served: Sequence[Served], begin: float) -> float:
    end = begin + WINDOW_S
    got: dict[str, float] = defaultdict(float)
    asked: dict[str, float] = defaultdict(float)
    for one in served:
        asked[one.client] += one.service / WINDOW_S if begin <= one.came_s < end else 0.0
        got[one.client] += one.service / WINDOW_S * _share_within(one, begin, end)
    best = max(got.values())
    return sum(min(best - got[client], abs(asked[client] - got[client])) for client in got)


def _share_within(one: Served, begin: float, end: float) -> float:
    if one.last_s <= one.first_s:  # of a single token
        return float(begin <= one.first_s < end)
    return max(0.0, min(one.last_s, end) - max(one.first_s, begin)) / (one.last_s - one.first_s)


def read_served(path: Path) -> list[Served]:
    """A recorded run: CSV with req_time_s, client, prompt_tokens, output_tokens, first_token_latency_s and
    request_latency_s; a latency of -1 is a request that was refused. InputError where the file is none."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as opened:
            rows = list(csv.DictReader(line for line in opened if line.strip() and not line.startswith("#")))
        if not rows:
            raise InputError(f"the recorded run {path} has no requests")
        return [
            Served(
                row["client"],
                float(row["req_time_s"]),
                float(row["req_time_s"]) + float(row["first_token_latency_s"]),
                float(row["req_time_s"]) + float(row["request_latency_s"]),
                service(int(row["prompt_tokens"]), int(row["output_tokens"])),
            )
            for row in rows
            if float(row["first_token_latency_s"]) >= 0
        ]
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read the recorded run {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise InputError(f"the recorded run {path} lacks a column or has a row that is none: {error}") from None
