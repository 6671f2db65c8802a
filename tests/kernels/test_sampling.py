"""Drawing: filters, penalties and their order, by hand, and random rows of all parameters beside their NumPy twins."""

from __future__ import annotations

import threading
from itertools import product
from typing import Any

import numpy as np
import pytest

from puna.kernels.batch import NOTHING_LEFT, SampleRows
from puna.kernels.cpu import NativeInterpreter
from puna.kernels.program import Embed, Linear, Program
from puna.kernels.reference import sampling
from puna.kernels.reference.interpreter import ReferenceInterpreter
from tests.kernels.drawing import KV, case_of, draws, sample, step_of
from tests.kernels.steps import F32, raw, rows, step


def random_rows(random: np.random.Generator, count: int, vocab: int) -> SampleRows:
    """Parameters of all kinds; about half of each are off."""

    def some(kind: Any, off: Any) -> Any:
        return np.where(random.random(count) < 0.5, off, kind)

    lengths = random.integers(1, 60, count)

    def ids(most: int, chance: float) -> list[list[int]]:
        return [
            random.choice(vocab, random.integers(1, min(most, vocab)), replace=False).tolist()
            if random.random() < chance
            else []
            for _ in range(count)
        ]

    return rows(
        random.integers(0, 16, count),
        temperature=random.choice([0.0, 1e-6, 0.3, 0.7, 1.0, 1.0, 1.7, 5.0], count),
        top_k=some(random.integers(1, vocab + 50, count), 0),
        top_p=some(random.uniform(0.02, 1.0, count), 1.0),
        min_p=some(random.uniform(0.0, 0.3, count), 0.0),
        repetition=some(random.uniform(0.5, 2.0, count), 1.0),
        frequency=some(random.uniform(-2, 2, count), 0.0),
        presence=some(random.uniform(-2, 2, count), 0.0),
        seed=random.integers(0, 2**64, count, dtype=np.uint64),
        position=random.integers(0, 2**31 - 1, count),
        history=random.integers(0, vocab, (count, 60)),
        history_row=random.permutation(count),
        prompt_len=random.integers(0, lengths + 1),
        total_len=lengths,
        num_logprobs=random.choice([-1, -1, 0, 1, 5], count),
        allowed=ids(40, 0.2),
        banned=ids(40, 0.3),
        bias=[dict.fromkeys(row, float(random.uniform(-20, 20))) for row in ids(10, 0.3)],
    )


@pytest.mark.parametrize("vocab", [17, 301, 640])
def test_a_thousand_random_rows_draw_what_their_twins_draw(isa: str, vocab: int) -> None:
    """Logits are continuous, so no filter's boundary falls on a tie."""
    random = np.random.default_rng(vocab)
    logits = (random.standard_normal((16, vocab)) * random.uniform(0.5, 8, (16, 1))).astype(np.float32)
    out = sample(logits, random_rows(random, 1000, vocab), isa)
    assert len(set(out.tokens.tolist())) > min(vocab, 100) * 0.8


def test_rows_of_a_vocabulary_of_a_real_size_draw_what_their_twins_draw(isa: str) -> None:
    vocab, width, count = 49152, 8, 120
    random = np.random.default_rng(5)
    weights = {
        "embed": raw("embed", random.standard_normal((16, width))),
        "head": raw("head", random.standard_normal((vocab, width)) * 1.5),
    }
    program = Program(
        {"hidden": width, "logits": vocab},
        (Embed("hidden", "embed"),),
        (Linear("hidden", "logits", "head"),),
        (),
        vocab,
    )
    samples = random_rows(random, count, vocab)
    out = NativeInterpreter(program, weights, KV, isa=isa, threads=2).step(step([(range(16), 0, [1])], samples))
    assert out.logits is not None
    for s in range(count):
        assert out.tokens[s] == sampling.draw(out.logits[s], samples, s)
        if samples.num_logprobs[s] >= 0:
            wanted = sampling.raw_logprobs(out.logits[s])
            np.testing.assert_allclose(out.logprob[s], wanted[out.tokens[s]], atol=2e-5)


def test_draws_depend_on_seed_position_and_logits_alone(isa: str) -> None:
    """Not on the row's place in the batch, on who else is drawn, or on how many threads draw."""
    random = np.random.default_rng(2)
    logits = random.standard_normal((5, 120)).astype(np.float32)
    seeds, positions = random.integers(0, 2**64, 90, dtype=np.uint64), random.integers(0, 5000, 90)
    index = random.integers(0, 5, 90)
    together = sample(logits, rows(index, temperature=1.0, seed=seeds, position=positions), isa, threads=3).tokens
    for s in range(0, 90, 7):
        alone = sample(
            logits, rows(index[[s]], temperature=1.0, seed=seeds[[s]], position=positions[[s]]), isa, threads=1
        )
        assert alone.tokens[0] == together[s]


# Filters, one by one and in their order, by hand.

P = np.log(np.array([0.05, 0.4, 0.15, 0.3, 0.1], np.float32))  # ranks: 1, 3, 2, 4, 0


def kept(logits: F32 = P, **given: Any) -> set[int]:
    return set(draws(logits, 600, **given))


@pytest.mark.parametrize(
    ("k", "wanted"), [(1, {1}), (2, {1, 3}), (4, {1, 2, 3, 4}), (5, {0, 1, 2, 3, 4}), (99, {0, 1, 2, 3, 4})]
)
def test_top_k_keeps_the_k_likeliest(k: int, wanted: set[int]) -> None:
    assert kept(top_k=k) == wanted


def test_top_k_keeps_all_that_tie_with_the_last_one_kept() -> None:
    assert kept(np.array([1.0, 3.0, 2.0, 2.0, 0.0], np.float32), top_k=2) == {1, 2, 3}


@pytest.mark.parametrize(
    ("p", "wanted"),
    [(0.01, {1}), (0.39, {1}), (0.41, {1, 3}), (0.69, {1, 3}), (0.71, {1, 2, 3}), (0.99, {0, 1, 2, 3, 4})],
)
def test_top_p_keeps_the_likeliest_up_to_the_one_that_reaches_the_mass(p: float, wanted: set[int]) -> None:
    assert kept(top_p=p) == wanted


def test_top_p_among_ties_keeps_the_lowest_ids() -> None:
    assert kept(np.zeros(8, np.float32), top_p=0.3) == {0, 1, 2}


def test_top_p_keeps_nothing_beyond_a_mass_that_is_reached_exactly() -> None:
    assert kept(np.zeros(8, np.float32), top_p=0.25) == {0, 1}


@pytest.mark.parametrize(
    ("p", "wanted"), [(0.2, {1, 2, 3, 4}), (0.26, {1, 2, 3}), (0.74, {1, 3}), (0.76, {1}), (1.0, {1})]
)
def test_min_p_is_a_share_of_the_largest_probability(p: float, wanted: set[int]) -> None:
    assert kept(min_p=p) == wanted


def test_temperature_comes_before_min_p() -> None:
    """At temperature 1/2 the ratio 0.3 to 0.4 becomes 0.5625."""
    assert kept(min_p=0.6, temperature=1.0) == {1, 3}
    assert kept(min_p=0.6, temperature=0.5) == {1}


def test_top_p_takes_its_share_of_what_top_k_left() -> None:
    """Of 0.4 and 0.3 the first is 0.57 of the mass: with top_k=2 a top_p of 0.5 keeps one, alone it keeps two."""
    assert kept(top_p=0.5) == {1, 3}
    assert kept(top_p=0.5, top_k=2) == {1}


def test_min_p_is_measured_on_all_and_top_p_on_what_it_left() -> None:
    """min-p 0.7 leaves 0.4 and 0.3."""
    assert kept(min_p=0.7, top_p=0.56) == {1}
    assert kept(min_p=0.7, top_p=0.58) == {1, 3}


def test_allowed_tokens_are_all_that_is_left() -> None:
    assert kept(allowed=[0, 4, 2]) == {0, 2, 4}
    assert draws(P, 1, temperature=0.0, allowed=[0, 4]) == [4]


def test_banned_tokens_are_out_also_where_they_are_allowed() -> None:
    assert kept(banned=[1, 3]) == {0, 2, 4}
    assert kept(allowed=[0, 1, 2], banned=[1]) == {0, 2}


def test_no_bias_brings_a_banned_token_back() -> None:
    assert kept(banned=[1], bias={1: 100.0}) == {0, 2, 3, 4}


def test_bias_is_added_before_the_maximum_is_taken() -> None:
    assert draws(P, 1, temperature=0.0, bias={0: 5.0}) == [0]
    assert draws(P, 1, temperature=0.0, bias={1: -100.0}) == [3]


def test_bias_comes_before_penalties() -> None:
    """-1 + 3 = 2 is divided: 0.5. The other way round it would be -1 * 4 + 3 = -1."""
    logits = np.array([-1.0, 0.4, -9.0], np.float32)
    given = {"temperature": 0.0, "history": [[0]], "total_len": 1, "prompt_len": 1, "repetition": 4.0, "bias": {0: 3.0}}
    assert draws(logits, 1, **given) == [0]


@pytest.mark.parametrize(
    ("penalties", "wanted"),
    [
        ({}, 0),
        ({"repetition": 1.25}, 0),  # of prompt and output alike: 3.2, 2.8
        ({"repetition": 2.2}, 2),  # 1.82, 1.59, 1.9
        ({"frequency": 0.3}, 1),  # 4 - 2 * 0.3 = 3.4; token 1 stands in the prompt only: 3.5
        ({"presence": 0.4}, 0),  # 3.6: counted once however often it came
        ({"presence": 0.6}, 1),
        ({"frequency": 0.2, "presence": 0.2}, 1),  # 4 - 0.4 - 0.2
        ({"frequency": -1.0}, 0),
    ],
)
def test_penalties_by_hand(penalties: dict[str, float], wanted: int) -> None:
    """Token 0 came twice in the output, token 1 in the prompt, token 2 never."""
    logits = np.array([4.0, 3.5, 1.9], np.float32)
    given = {"temperature": 0.0, "history": [[1, 0, 0, 2, 2]], "prompt_len": 1, "total_len": 3}
    assert draws(logits, 1, **given, **penalties) == [wanted]


def test_repetition_makes_negative_logits_more_negative() -> None:
    logits = np.array([-1.0, -1.5], np.float32)
    given = {"temperature": 0.0, "history": [[0]], "prompt_len": 1, "total_len": 1}
    assert draws(logits, 1, **given) == [0]
    assert draws(logits, 1, **given, repetition=1.6) == [1]


def test_repetition_comes_before_frequency() -> None:
    """(3 / 1.5) - 0.5 = 1.5; the other way round it would be (3 - 0.5) / 1.5 = 1.67."""
    logits = np.array([3.0, 1.6], np.float32)
    given = {"temperature": 0.0, "history": [[0]], "prompt_len": 0, "total_len": 1}
    assert draws(logits, 1, **given, repetition=1.5, frequency=0.5) == [1]


def test_greedy_rows_ignore_filters_and_seeds() -> None:
    assert kept(temperature=0.0, top_k=5, top_p=0.9, min_p=0.1) == {1}
    assert kept(temperature=9e-6) == {1}


@pytest.mark.parametrize("width", [5, 16, 33, 100])
def test_greedy_ties_go_to_the_lowest_id(isa: str, width: int) -> None:
    for first in range(width):
        logits = np.zeros((1, width), np.float32)
        logits[0, first:] = 2.5
        assert sample(logits, rows([0]), isa).tokens.tolist() == [first]
        assert sample(logits, rows([0], banned=[[first]] if first + 1 < width else [[]]), isa).tokens[0] >= first


def test_a_row_in_which_nothing_is_allowed_draws_nothing_and_says_so() -> None:
    assert draws(P, 3, allowed=[0, 2], banned=[0, 2]) == [NOTHING_LEFT] * 3
    assert draws(P, 1, temperature=0.0, banned=[0, 1, 2, 3, 4]) == [NOTHING_LEFT]


def test_drawing_waits_for_masks_that_another_thread_writes(isa: str) -> None:
    logits = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    case = case_of(logits)
    interpreters = [
        NativeInterpreter(case.program, case.weights, KV, isa=isa, threads=2),
        ReferenceInterpreter(case.program, case.weights, KV),
    ]
    waiting = rows(range(3), temperature=1.0, seed=range(3), mask=np.full((3, 2), 0xFFFFFFFF))
    waiting.ready[0] = 0
    batch = step_of(case, waiting)
    for interpreter, wanted in product(interpreters, (5, 37)):  # the second run of each is the same batch again

        def write(wanted: int = wanted) -> None:
            waiting.mask[:] = 0
            waiting.mask[:, wanted // 32] = 1 << wanted % 32
            waiting.ready[0] = 1

        waiting.ready[0] = 0
        waiting.mask[:] = 0xFFFFFFFF
        writer = threading.Timer(0.05, write)
        writer.start()
        assert interpreter.step(batch).tokens.tolist() == [wanted] * 3
        writer.join()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 7, 16, 36])
def test_logits_that_are_not_numbers_give_no_token_and_hurt_no_other_row(isa: str, bad: float, place: int) -> None:
    """One of 37 values is not a number; the identity matrix makes NaN of all its row, and of no other row."""
    logits = np.random.default_rng(0).standard_normal((4, 37)).astype(np.float32)
    logits[2, place] = bad
    with np.errstate(invalid="ignore"):
        out = sample(logits, rows([0, 1, 2, 3], num_logprobs=1), isa)
        scored = sample(logits, rows([2, 3], target=[5, 6], num_logprobs=1), isa)
    assert scored.tokens.tolist() == [-1, 6]
    wanted = logits.argmax(axis=1)
    wanted[2] = -1
    np.testing.assert_array_equal(out.tokens, wanted)
    assert (out.rank[2], out.top_ids[2, 0]) == (0, -1)
