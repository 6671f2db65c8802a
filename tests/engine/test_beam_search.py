"""Beam search as bookkeeping, on tables of random numbers for a model."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from puna.engine.beams import Beam, BeamRules, BeamSearch, Candidates
from tests.engine.dense_beams import Found, Model, every_continuation, whole_tables

EARLY: list[Any] = [True, False, "never"]


def toy(seed: int, vocab: int) -> Model:
    """Log-probabilities that depend on the last two tokens."""
    logits = np.random.default_rng(seed).normal(0, 1.5, (vocab + 1, vocab + 1, vocab))
    table = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return lambda tokens: table[(-1, -1, *tokens)[-2:]].tolist()


def search(model: Model, rules: BeamRules) -> Found:
    """As the engine drives it: every beam brings its likeliest tokens, no more than are looked at."""
    state = BeamSearch(rules)
    while not state.done:
        before = state.beams
        parents = state.advance([candidates(model, rules, beam) for beam in before])
        assert len(parents) == (0 if state.done else len(state.beams)) <= rules.width
        assert all(beam.before is before[i] for beam, i in zip(state.beams, parents, strict=False))
    return [(tokens_of(answer.beam), answer.score) for answer in state.answers]


def candidates(model: Model, rules: BeamRules, beam: Beam) -> Candidates:
    logprobs = np.array(model(tokens_of(beam)))
    best = np.argsort(-logprobs, kind="stable")[: rules.candidates]
    return Candidates(best.tolist(), logprobs[best].tolist())


def tokens_of(beam: Beam) -> tuple[int, ...]:
    return tuple(link.token for link in beam.chain())


def assert_same(found: Found, wanted: Found) -> None:
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in wanted]
    np.testing.assert_allclose([score for _, score in found], [score for _, score in wanted])


@given(
    seed=st.integers(0, 10**6),
    vocab=st.integers(4, 7),
    longest=st.integers(1, 7),
    ends=st.sets(st.integers(0, 3), max_size=2),
    width=st.integers(1, 4),
    penalty=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]),
    early=st.sampled_from(EARLY),
    least=st.integers(0, 3),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_answers_are_those_of_the_search_with_whole_tables(
    seed: int, vocab: int, longest: int, ends: set[int], width: int, penalty: float, early: Any, least: int
) -> None:
    model = toy(seed, vocab)
    found = search(model, BeamRules(width, longest, frozenset(ends), min(least, longest), penalty, early))
    assert_same(found, whole_tables(model, vocab, longest, ends, width, penalty, early, min(least, longest)))


@given(
    seed=st.integers(0, 10**6),
    vocab=st.integers(2, 4),
    longest=st.integers(1, 4),
    ends=st.sets(st.integers(0, 1), max_size=1),
    penalty=st.sampled_from([0.0, 0.7, 1.0, 2.0]),
    least=st.integers(0, 2),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_with_a_beam_for_everything_it_finds_the_best_of_all_there_is(
    seed: int, vocab: int, longest: int, ends: set[int], penalty: float, least: int
) -> None:
    model, width = toy(seed, vocab), vocab**longest
    found = search(model, BeamRules(width, longest, frozenset(ends), min(least, longest), penalty, "never"))
    wanted = every_continuation(model, vocab, longest, ends, penalty, min(least, longest))
    assert_same(found, wanted[:width])


def test_finished_beams_do_not_starve_those_that_go_on() -> None:
    """The end is the likeliest token everywhere; with as many candidates as beams none would be left to go on."""
    model = lambda tokens: [-0.1, -3.0, -3.5, -4.0]  # noqa: ARG005, E731
    state = BeamSearch(BeamRules(2, 5, frozenset({0})))
    state.advance([candidates(model, state.rules, state.beams[0])])
    assert [answer.beam.token for answer in state.answers] == [0]
    assert [beam.token for beam in state.beams] == [1, 2]


@pytest.mark.parametrize(("early", "steps"), [(True, 2), (False, 3), ("never", 5)])
def test_the_three_ways_to_stop_early(early: Any, steps: int) -> None:
    """The best beam is better than the worst answer up to its second token, and at six it would be up to its fourth."""

    def model(tokens: tuple[int, ...]) -> list[float]:
        return [-1.2, -1.0, -9.0, -9.5] if len(tokens) < 2 else [-9.0, -2.0, -9.5, -9.0]

    state, taken = BeamSearch(BeamRules(2, 6, frozenset({0}), 0, 1.0, early)), 0
    while not state.done:
        state.advance([candidates(model, state.rules, beam) for beam in state.beams])
        taken += 1
    assert taken == steps


def test_a_length_penalty_above_zero_favours_long_answers_and_one_below_short_ones() -> None:
    model = toy(5, 5)
    lengths = [
        len(search(model, BeamRules(4, 8, frozenset({0}), 0, penalty, "never"))[0][0]) for penalty in (-2.0, 0.0, 4.0)
    ]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


def test_fewer_continuations_than_beams_are_all_there_is() -> None:
    found = search(lambda tokens: [-0.5, -1.0, -2.0], BeamRules(4, 1))  # noqa: ARG005
    assert [tokens for tokens, _ in found] == [(0,), (1,), (2,)]
