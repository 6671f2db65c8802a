"""The noise behind a draw: known answers of its generator, and draws that follow the distribution they promise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from puna.kernels.reference import sampling
from tests.kernels.drawing import draws, native, softmax
from tests.kernels.steps import rows

Ids = npt.NDArray[np.int64]

# Philox 4x32-10, vectors as published with Random123 (kat_vectors).

ONES = 0xFFFFFFFF
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def plain_philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """The generator once more, in whole numbers, with all of its counter."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (second >> 32) ^ c1 ^ k0, second & ONES, (first >> 32) ^ c3 ^ k1, first & ONES
        k0, k1 = (k0 + 0x9E3779B9) & ONES, (k1 + 0xBB67AE85) & ONES
    return c0, c1, c2, c3


@pytest.mark.parametrize(("counter", "key", "wanted"), KNOWN)
def test_philox_gives_its_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    assert plain_philox(counter, key) == wanted


def test_the_noise_of_a_token_is_philox_keyed_by_seed_and_counted_by_position_and_token() -> None:
    np.testing.assert_array_equal(sampling.philox(0, 0, np.arange(4)), KNOWN[0][2])
    random = np.random.default_rng(0)
    for _ in range(50):
        seed, position = int(random.integers(0, 2**64, dtype=np.uint64)), int(random.integers(0, 2**31))
        tokens: Ids = random.integers(0, 200_000, 20)
        found = sampling.philox(seed, position, tokens)
        for token, bits in zip(tokens.tolist(), found.tolist(), strict=True):
            assert bits == plain_philox((token // 4, position, 0, 0), (seed & ONES, seed >> 32))[token % 4]


def test_gumbel_noise_is_finite_at_both_ends_and_ordered() -> None:
    ends = sampling.gumbel(np.array([0, 1, 2**31, 2**32 - 2, 2**32 - 1], np.uint32))
    assert np.isfinite(ends).all()
    assert (np.diff(ends) < 0).all()
    np.testing.assert_allclose(ends[0], 33 * np.log(2), rtol=1e-9)


def chi_square_limit(freedom: int, deviations: float = 4.0) -> float:
    """The quantile at `deviations` standard deviations (one in 30,000 at 4), by Wilson and Hilferty."""
    spread = 2 / (9 * freedom)
    return float(freedom * (1 - spread + deviations * spread**0.5) ** 3)


def chi_square(counts: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64]) -> float:
    expected = probabilities * counts.sum()
    assert expected.min() > 5
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("seed", [0, 7, 2**63 + 5])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_draws_over_many_positions_follow_softmax(seed: int, temperature: float) -> None:
    logits = np.array([1.5, -0.5, 0.0, 2.0, 1.0, -1.0, 0.5, 0.25, 1.75, -0.75, 0.1], np.float32)
    found = draws(logits, 20_000, seed=seed, temperature=temperature)
    counts = np.bincount(found, minlength=len(logits))
    assert chi_square(counts, softmax(logits, temperature)) < chi_square_limit(len(logits) - 1)


def test_draws_over_many_seeds_at_one_position_follow_softmax() -> None:
    logits = np.array([0.0, 1.0, -1.0, 0.5, 2.0, -0.5], np.float32)
    samples = rows([0] * 20_000, temperature=1.0, seed=np.arange(20_000, dtype=np.uint64), position=77)
    found = native(logits[None], samples).tokens
    assert chi_square(np.bincount(found, minlength=6), softmax(logits)) < chi_square_limit(5)


def test_neighbouring_positions_and_neighbouring_seeds_are_independent() -> None:
    logits = np.array([0.0, 0.5, -0.5, 0.2], np.float32)
    joint = np.outer(softmax(logits), softmax(logits)).reshape(-1)
    found = np.array(draws(logits, 20_000))
    pairs = np.bincount(4 * found[0::2] + found[1::2], minlength=16)
    assert chi_square(pairs, joint) < chi_square_limit(15)
    other = np.array(draws(logits, 20_000, seed=1235))
    assert chi_square(np.bincount(4 * found + other, minlength=16), joint) < chi_square_limit(15)


def test_what_filters_keep_is_drawn_in_proportion() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05], np.float32))
    found = np.bincount(draws(logits, 20_000, top_k=3), minlength=5)
    assert (found[3:] == 0).all()
    assert chi_square(found[:3], np.array([0.4, 0.3, 0.15]) / 0.85) < chi_square_limit(2)
