"""What is counted of requests and steps, as plain objects: bounds, sums over engines, what counts as an end."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from puna.engine.histogram import Histogram, lengths_up_to
from puna.engine.meter import Meter
from puna.engine.params import EngineRequest, SamplingParams
from puna.engine.stats import EngineStats, totals
from puna.errors import EngineError, OverloadedError
from puna.sched.stats import SchedulerStats


def request(n: int = 1) -> EngineRequest:
    return EngineRequest(request_id="a", prompt_token_ids=[1, 2, 3], params=SamplingParams(n=n))


def stats(steps: int, running: int, hits: int) -> EngineStats:
    scheduler = SchedulerStats(0, running, 0, 0, 1, 2, 3, 0, 0, 10, hits, 0, 0)
    return EngineStats(scheduler, {"steps": steps, "forward_s": 0.5}, running, [steps, 0])


def test_a_value_that_equals_a_bound_counts_below_it() -> None:
    histogram = Histogram((1, 2, 5))
    for value in (0.5, 1, 1.5, 5, 6):
        histogram.observe(value)
    assert histogram.counts == [2, 1, 1, 1]
    assert (histogram.count, histogram.total) == (5, 14)
    assert lengths_up_to(256) == (1, 2, 5, 10, 20, 50, 100, 200)


def test_sums_of_engines_add_up_and_gauges_are_the_newest() -> None:
    both = totals(stats(7, 3, 4), stats(2, 1, 5))
    assert both is not None
    assert both.counters == {"steps": 9, "forward_s": 1.0}
    assert (both.scheduler.running, both.scheduler.prefix_hits, both.scheduler.prefix_queries) == (1, 9, 20)
    assert both.step_tokens == [9, 0]
    assert totals(None, stats(2, 1, 5)) == stats(2, 1, 5)
    assert totals(stats(2, 1, 5), None) == stats(2, 1, 5)


@pytest.mark.parametrize(
    ("error", "finished", "refused"),
    [
        (None, {"abort": 2}, 0),
        (GeneratorExit(), {"abort": 2}, 0),
        (asyncio.CancelledError(), {"abort": 2}, 0),
        (EngineError("gone"), {"error": 2}, 0),
        (OverloadedError("full", retry_after_s=1.0), {}, 1),
    ],
)
def test_what_has_not_ended_ends_as_its_client_saw_it(
    error: BaseException | None, finished: dict[str, int], refused: int
) -> None:
    meter = Meter(256)
    with contextlib.suppress(BaseException), meter.watch(request(n=2)):
        if error is not None:
            raise error
    assert {reason: count for reason, count in meter.finished.items() if count} == finished
    assert meter.refused == refused
    assert meter.whole_s.count == 0


def test_a_prompt_counts_once_however_many_samples_begin() -> None:
    meter = Meter(256)
    with meter.watch(request(n=2)) as watch:
        for index in (0, 1):
            watch.note_start(2, 0.25)
            watch.note(index, 1, None)
            watch.note(index, 1, "length")
    assert (meter.prompt_tokens, meter.cached_tokens, meter.generated_tokens) == (3, 2, 4)
    assert meter.queue_s.total == 0.25
    assert (meter.first_token_s.count, meter.token_gap_s.count, meter.token_mean_s.count) == (2, 2, 2)
    assert meter.finished["length"] == 2
