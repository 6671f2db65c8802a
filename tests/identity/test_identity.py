"""64 mixed requests get the same tokens and log-probabilities, bit for bit, however they are served.

Every way of serving them runs on every instruction path of this machine. And every one runs once more on a core whose
sums depend on the batch: a comparison that does not notice that would prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from puna.kernels.cpu import paths
from tests.engine.driving import Samples
from tests.identity.conftest import Bench, Numerics
from tests.identity.crowd import (
    WAYS,
    Crowd,
    EngineMaker,
    differing,
    forked,
    in_small_chunks,
    swapped,
    together,
    with_prefix_hits,
)

Way = Callable[[EngineMaker, Crowd], Samples]


def name(way: Way) -> str:
    return way.__name__


def check(bench: Bench, numerics: Numerics, way: Way) -> list[tuple[str, int]]:
    return differing(bench.answers(numerics, way), bench.wanted(numerics, way))


@pytest.mark.parametrize("way", WAYS, ids=name)
@pytest.mark.parametrize("isa", paths())
def test_a_request_gets_what_it_gets_alone(tiny: Bench, isa: str, way: Way) -> None:
    assert check(tiny, Numerics(isa), way) == []


@pytest.mark.parametrize("way", [together, in_small_chunks, swapped], ids=name)
@pytest.mark.parametrize("isa", paths())
def test_a_request_gets_what_it_gets_alone_in_float32(tiny: Bench, isa: str, way: Way) -> None:
    assert check(tiny, Numerics(isa, "float32"), way) == []


@pytest.mark.parametrize("way", WAYS, ids=name)
@pytest.mark.parametrize("isa", paths())
def test_sums_that_depend_on_the_batch_are_noticed(tiny: Bench, isa: str, way: Way) -> None:
    assert len(check(tiny, Numerics(isa, broken=True), way)) > 10


def test_the_crowd_is_mixed(tiny: Bench) -> None:
    wanted = tiny.wanted(Numerics("auto"), together)
    assert len(wanted) == 64
    assert len({tuple(sample.tokens) for sample in wanted.values()}) > 50
    assert {sample.finish_reason for sample in wanted.values()} == {"stop", "length"}
    samples = tiny.wanted(Numerics("auto"), forked)
    assert len(samples) == 48
    sampled = [key for key in samples if samples[key].tokens != samples[key[0], 0].tokens]
    assert len(sampled) > 10


@pytest.mark.model
def test_requests_to_a_real_model_get_together_what_they_get_alone(smollm2: Bench) -> None:
    assert check(smollm2, Numerics(paths()[0]), together) == []


@pytest.mark.model
@pytest.mark.parametrize("way", [in_small_chunks, with_prefix_hits, swapped, forked], ids=name)
def test_a_request_to_a_real_model_gets_what_it_gets_alone(smollm2_few: Bench, way: Way) -> None:
    assert check(smollm2_few, Numerics(paths()[0]), way) == []


@pytest.mark.model
@pytest.mark.parametrize("isa", [isa for isa in paths()[1:] if isa != "portable"])
def test_a_request_to_a_real_model_gets_what_it_gets_alone_on_other_paths(smollm2_few: Bench, isa: str) -> None:
    assert check(smollm2_few, Numerics(isa), together) == []


@pytest.mark.model
def test_on_a_real_model_sums_that_depend_on_the_batch_are_noticed(smollm2_few: Bench) -> None:
    assert len(check(smollm2_few, Numerics(paths()[0], broken=True), together)) > 10
