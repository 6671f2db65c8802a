"""The difference metric: the published figures of a recorded run to a hundredth, and what it is of, piece by piece."""

from __future__ import annotations

from pathlib import Path

import pytest

from puna.errors import InputError
from puna.plan.service import Served, difference, of_outcomes, read_served
from puna.plan.simulated import Outcome, SimulatedRequest

# Of the artifact of "Fairness in Serving Large Language Models" (Ying1123/VTC-artifact, Apache-2.0): its arena trace
# under the Virtual Token Counter on an A10G; times, lengths and anonymous ids.
RECORDED = Path(__file__).parents[1] / "data" / "recorded_arena_vtc.csv.gz"


def test_a_recorded_run_has_the_figures_that_were_published_of_it() -> None:
    served = read_served(RECORDED)
    assert len(served) == 1500
    found = difference(served, 600.0)
    assert found is not None
    assert (round(found.most, 2), round(found.mean, 2), round(found.variance, 2)) == (368.40, 251.66, 6549.16)


def even(client: str, service: float) -> Served:
    return Served(client, 0.0, 0.0, 700.0, service)


def test_who_gets_the_same_lies_not_apart_and_who_gets_less_does() -> None:
    same = difference([even("a", 700.0), even("b", 700.0)], 600.0)
    assert same is not None
    assert (same.most, same.mean) == (0, 0)
    # b got a quarter of a's, and nobody asked anything after the beginning: what was asked is not what limits it
    less = difference([even("a", 700.0), even("b", 175.0)], 600.0)
    assert less is not None
    assert (less.most, less.mean) == pytest.approx((0.25, 0.25))
    assert less.variance == pytest.approx(0)


def test_a_client_that_got_all_it_asked_for_lacks_nothing() -> None:
    busy = [Served("a", at, at, at + 1.0, 100.0) for at in map(float, range(600))]
    modest = [Served("b", at, at, at + 1.0, 10.0) for at in map(float, range(0, 600, 60))]
    found = difference([*busy, *modest], 600.0)
    assert found is not None
    assert found.most < 0.1 * 100


def test_outcomes_that_were_refused_are_left_out_and_samples_all_count() -> None:
    request = SimulatedRequest(0, 1.0, 10, 5, samples=3, tenant="t")
    served = of_outcomes([Outcome(request, 2.0, 4.0), Outcome(request, refused="no")])
    assert served == [Served("t", 1.0, 2.0, 4.0, 10 + 2 * 15)]


def test_a_run_that_is_too_short_or_empty_has_no_difference() -> None:
    assert difference([even("a", 1.0)], 30.0) is None
    assert difference([], 600.0) is None


@pytest.mark.parametrize("text", ["", "client\nx\n", "client,req_time_s\n1,2\n"])
def test_files_that_are_no_recorded_run_are_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "run.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=r"run\.csv"):
        read_served(file)
