"""The native sampler on given logits, beside its NumPy twin: vocabularies of many tiles, ties, edges, bitmasks.

A filter is only asked about the winner of a draw, so what it keeps is seen over many seeds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.errors import InputError
from puna.kernels.batch import NOTHING_LEFT, SampleRows
from puna.kernels.cpu import paths
from puna.kernels.cpu.sampler import NativeSampler
from puna.kernels.reference import sampling
from tests.kernels.sanitized import examples
from tests.kernels.steps import F32, rows

SAMPLERS = {isa: NativeSampler(isa, threads=2) for isa in paths()}


def assert_twins_agree(logits: F32, samples: SampleRows) -> npt.NDArray[np.int32]:
    """Every path draws what the twin draws, and leaves the logits as they were."""
    wanted = [sampling.choose(logits[row], samples, s) for s, row in enumerate(samples.index)]
    for isa, sampler in SAMPLERS.items():
        worked_on = logits.copy()
        out = sampler.sample(worked_on, samples)
        assert out.tokens.tolist() == wanted, isa
        np.testing.assert_array_equal(worked_on.view(np.uint32), logits.view(np.uint32))
    return np.array(wanted, np.int32)


def many(row: F32, count: int, **given: Any) -> tuple[F32, SampleRows]:
    """`count` copies of one row, each with a seed of its own."""
    given = {"temperature": 1.0, "seed": np.arange(count), "position": 9} | given
    return np.repeat(np.atleast_2d(row).astype(np.float32), count, axis=0), rows(range(count), **given)


def kept(row: F32, count: int = 200, **given: Any) -> set[int]:
    return set(assert_twins_agree(*many(row, count, **given)).tolist())


@st.composite
def batches(draw: st.DrawFn) -> tuple[F32, SampleRows]:
    """A few rows of any size, spread and coarseness, with any parameters."""
    vocab = draw(st.one_of(st.integers(1, 70), st.sampled_from([255, 256, 257, 511, 513, 1000, 3001])))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 6))
    logits = (random.standard_normal((count, vocab)) * draw(st.sampled_from([0.0, 0.1, 1.0, 4.0, 30.0]))).astype(
        np.float32
    )
    logits += np.float32(draw(st.sampled_from([0.0, -50.0, 1000.0])))
    coarse = draw(st.sampled_from([0.0, 0.5, 2.0]))
    if coarse:  # ties
        logits = (np.round(logits / np.float32(coarse)) * np.float32(coarse)).astype(np.float32)

    def some(kind: Any, off: Any) -> Any:
        return np.where(random.random(count) < 0.4, off, kind)

    def ids(chance: float) -> list[list[int]]:
        return [
            random.integers(0, vocab, random.integers(1, 30)).tolist() if random.random() < chance else []
            for _ in range(count)
        ]

    words = -(-vocab // 32)
    masks = random.integers(0, 2**32, (count, words), dtype=np.uint32)
    masks[random.random(count) < 0.3] = 0xFFFFFFFF
    lengths = random.integers(1, 40, count)
    return logits, rows(
        random.permutation(count),
        temperature=random.choice([0.0, 0.05, 0.7, 1.0, 1.0, 1.3, 8.0], count),
        top_k=some(random.integers(1, vocab + 9, count), 0),
        top_p=some(random.choice([0.0, 1e-6, 0.25, 0.5, 0.9, 0.95, 0.9999999], count), 1.0),
        min_p=some(random.choice([1e-9, 0.01, 0.3, 1.0], count), 0.0),
        repetition=some(random.uniform(0.5, 2.0, count), 1.0),
        presence=some(random.uniform(-2, 2, count), 0.0),
        seed=random.integers(0, 2**64, count, dtype=np.uint64),
        position=random.integers(0, 2**31 - 1, count),
        history=random.integers(0, vocab, (count, 40)),
        history_row=range(count),
        prompt_len=random.integers(0, lengths + 1),
        total_len=lengths,
        allowed=ids(0.2),
        banned=ids(0.3),
        bias=[dict.fromkeys(row, float(random.uniform(-20, 20))) for row in ids(0.3)],
        mask=masks if random.random() < 0.4 else np.zeros((0, 0)),
    )


@settings(max_examples=examples(300), deadline=None)
@given(batches())
def test_any_row_with_any_parameters_draws_what_its_twin_draws(batch: tuple[F32, SampleRows]) -> None:
    assert_twins_agree(*batch)


@settings(max_examples=examples(100), deadline=None)
@given(batches(), st.integers(0, 2**31), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_a_logit_that_is_no_number_gives_no_token_wherever_it_stands(
    batch: tuple[F32, SampleRows], place: int, bad: float
) -> None:
    logits, samples = batch
    row = place % len(logits)
    logits[row, place % logits.shape[1]] = bad
    with np.errstate(invalid="ignore"):
        tokens = assert_twins_agree(logits, samples)
    assert (tokens == -1).tolist() == (samples.index == row).tolist()


@pytest.mark.parametrize("vocab", [2000, 49152])
@pytest.mark.parametrize("top_p", [1e-7, 0.1, 0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
def test_top_p_of_spread_out_rows_is_drawn_as_by_sorting(vocab: int, top_p: float, temperature: float) -> None:
    """From few tokens to nearly all of them: the search for candidates widens, and winners are refused."""
    random = np.random.default_rng(vocab)
    logits = (random.standard_normal((6, vocab)) * np.array([[0.0], [0.3], [1], [2], [3.5], [9]])).astype(np.float32)
    assert_twins_agree(logits, rows(range(6), temperature=temperature, top_p=top_p, seed=np.arange(6), position=3))


@pytest.mark.parametrize("vocab", [8, 250, 4096])
def test_top_p_among_equal_tokens_is_exact_at_every_edge(vocab: int) -> None:
    """All weights are one: the mass before a token is its id, and a share that is a whole number is reached exactly."""
    for share in (1, 2, vocab // 4, vocab // 2, vocab - 1):
        found = kept(np.zeros(vocab, np.float32), 150, top_p=share / vocab)
        edge = int(np.ceil(np.float64(np.float32(share / vocab)) * vocab))
        assert max(found) < edge
        if edge < 5:
            assert found == set(range(edge))


def test_the_mass_that_an_exact_edge_of_top_p_is_compared_with_is_of_what_top_k_left() -> None:
    """Two equal tokens are half of the mass each, whatever the third one weighs."""
    row = np.full(600, -9.0, np.float32)
    row[[40, 400, 500]] = 2.0, 2.0, 1.0
    assert kept(row, top_k=2, top_p=0.5) == {40}
    assert kept(row, top_k=2, top_p=0.51) == {40, 400}


@pytest.mark.parametrize("k", [1, 7, 50, 191, 192, 193, 1000, 40_000, 49_151, 49_152, 60_000])
def test_top_k_of_any_size_is_drawn_as_by_sorting(k: int) -> None:
    random = np.random.default_rng(k)
    logits = (random.standard_normal((4, 49152)) * 2).astype(np.float32)
    logits[3] = np.round(logits[3])
    samples = rows(range(4), temperature=[1.0, 0.3, 5.0, 1.0], top_k=k, top_p=[1, 1, 0.9, 0.9], seed=range(4))
    assert_twins_agree(logits, samples)


def test_tokens_that_tie_only_after_division_by_the_temperature_stay_together() -> None:
    """Floats below 2 lie twice as close as those above 1: of neighbours divided by 1.9 many become equal, and top-k
    keeps all that tie with the last one kept."""
    temperature = np.float32(1.9)
    above = np.float32(1.95)
    while above / temperature != np.nextafter(above, np.float32(0)) / temperature:
        above = np.nextafter(above, np.float32(2))
    row = np.full(700, -40.0, np.float32)
    row[[3, 300, 650]] = above, np.nextafter(above, np.float32(0)), above
    assert kept(row, temperature=temperature, top_k=1) == {3, 300, 650}


def test_a_temperature_that_makes_infinities_is_greedy() -> None:
    row = np.full(300, 3e37, np.float32)
    row[[70, 200]] = 3.1e37
    assert kept(row, 5, temperature=0.01) == {70}
    assert kept(row, 5, temperature=0.01, top_p=0.5, top_k=3) == {70}


def test_a_bitmask_allows_the_tokens_whose_bits_are_set() -> None:
    row = np.zeros(70, np.float32)
    row[69] = 5.0
    words = np.array([[1 << 3 | 1 << 31, 1 << 0, 1 << 5 | 0xFFFFFF00]] * 200, np.uint32)  # bits beyond 69 mean nothing
    allowed = {3, 31, 32, 69}
    assert kept(row, mask=words) == allowed
    assert kept(row, mask=words, banned=[[69, 3]] * 200) == {31, 32}
    assert kept(row, mask=words, bias=[{5: 90.0}] * 200) == allowed
    assert kept(row, mask=words, allowed=[[31, 3, 40]] * 200) == {3, 31}
    assert kept(row, temperature=0.0, mask=words) == {69}
    assert kept(row, mask=words, allowed=[[40]] * 200) == {NOTHING_LEFT}


def test_rows_of_a_mask_that_allow_all_change_nothing() -> None:
    logits = np.random.default_rng(0).standard_normal((3, 333)).astype(np.float32)
    words = np.full((3, 11), 0xFFFFFFFF, np.uint32)
    words[1] = [0b100, *[0] * 10]
    samples = rows(range(3), temperature=1.0, seed=range(3), mask=words)
    free = rows(range(3), temperature=1.0, seed=range(3))
    found, wanted = assert_twins_agree(logits, samples), assert_twins_agree(logits, free)
    assert found.tolist() == [wanted[0], 2, wanted[2]]


@pytest.mark.parametrize("isa", paths())
@pytest.mark.parametrize("k", [1, 5, 60, 300])
def test_best_tokens_of_tied_and_of_masked_rows_are_those_of_the_raw_logits(isa: str, k: int) -> None:
    random = np.random.default_rng(k)
    logits = np.round(random.standard_normal((3, 5000)) * 3).astype(np.float32)
    given: dict[str, Any] = {"banned": [np.argsort(-row)[:40].tolist() for row in logits], "repetition": 1.5}
    given |= {"history": random.integers(0, 5000, (1, 40)), "total_len": 40}
    out = SAMPLERS[isa].sample(logits, rows(range(3), num_logprobs=k, **given))
    for s in range(3):
        assert out.top_ids[s].tolist() == np.argsort(-logits[s], kind="stable")[:k].tolist()
        assert out.rank[s] == 1 + (logits[s] > logits[s, out.tokens[s]]).sum()


@pytest.mark.parametrize("isa", paths())
def test_a_sampler_refuses_what_leaves_its_range(isa: str) -> None:
    logits = np.zeros((2, 40), np.float32)
    sampler = SAMPLERS[isa]
    for samples, match in [
        (rows([2]), r"samples.index\[0\] is 2; allowed: 0 to 1"),
        (rows([0], banned=[[40]]), "samples.banned"),
        (rows([1, 1]), "chosen twice"),
        (rows([0], mask=np.zeros((1, 1))), "rows of 1 words; allowed: 2"),
    ]:
        with pytest.raises(InputError, match=match):
            sampler.sample(logits, samples)


@pytest.mark.parametrize("isa", paths())
def test_noise_of_every_token_is_that_of_philox(isa: str) -> None:
    """Where all logits are equal the winner is the token with the smallest bits: one wrong word would show."""
    vocab, count = 700, 300
    random = np.random.default_rng(1)
    seeds = random.integers(0, 2**64, count, dtype=np.uint64)
    positions = random.integers(0, 2**31, count)
    logits = np.zeros((count, vocab), np.float32)
    plain = SAMPLERS[isa].sample(logits, rows(range(count), temperature=1.0, seed=seeds, position=positions))
    listed = SAMPLERS[isa].sample(
        logits, rows(range(count), temperature=1.0, seed=seeds, position=positions, min_p=0.5)
    )
    for s in range(count):
        bits = sampling.philox(int(seeds[s]), int(positions[s]), np.arange(vocab))
        assert plain.tokens[s] == listed.tokens[s] == bits.argmin()
