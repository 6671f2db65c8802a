"""Lengths and arrivals: the means that they are named after, cuts that hold, the same seed the same numbers."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest

from puna.errors import InputError
from puna.workloads.arrivals import arrival_times
from puna.workloads.lengths import ALPACA, LENGTHS, SHAREGPT, LogNormal


@pytest.mark.parametrize("name", sorted(LENGTHS))
def test_lengths_have_the_means_that_were_published_before_they_are_cut(name: str) -> None:
    lengths = LENGTHS[name].cut(1 << 20)
    drawn = lengths.draw(20_000, random.Random(5))
    assert statistics.fmean(prompt for prompt, _ in drawn) == pytest.approx(lengths.prompt.mean, rel=0.04)
    assert statistics.fmean(answer for _, answer in drawn) == pytest.approx(lengths.answer.mean, rel=0.04)
    assert (SHAREGPT.prompt.mean, SHAREGPT.answer.mean) == (161, 338)
    assert (ALPACA.prompt.mean, ALPACA.answer.mean) == (19, 58)


def test_cuts_hold_and_nothing_is_empty() -> None:
    drawn = SHAREGPT.cut(40).draw(500, random.Random(1))
    assert {1 <= prompt <= 40 and 1 <= answer <= 40 for prompt, answer in drawn} == {True}
    assert (40, 40) in drawn
    assert SHAREGPT.cut(40).longest == 80
    assert min(LogNormal(1, 3.0).draw(random.Random(seed)) for seed in range(50)) == 1


@pytest.mark.parametrize("variation", [0.0, 0.5, 1.0, 3.0])
def test_arrivals_come_at_their_rate_with_gaps_that_vary_so_much(variation: float) -> None:
    times = arrival_times(4.0, 20_000, random.Random(2), variation)
    assert times == sorted(times)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert statistics.fmean(gaps) == pytest.approx(0.25, rel=0.1)
    assert statistics.pstdev(gaps) == pytest.approx(0.25 * variation, rel=0.15, abs=1e-6)
    assert times == arrival_times(4.0, 20_000, random.Random(2), variation)


@pytest.mark.parametrize(("rate", "variation"), [(0.0, 1.0), (float("nan"), 1.0), (1.0, -1.0), (1.0, float("inf"))])
def test_a_process_that_cannot_be_is_refused(rate: float, variation: float) -> None:
    with pytest.raises(InputError):
        arrival_times(rate, 3, random.Random(1), variation)
