"""Beam search in the engine: the same answers whatever the memory, the steps and the company are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from puna.engine.core import Engine
from puna.engine.params import EngineRequest, SamplingParams
from puna.engine.replay import replay
from puna.errors import InputError, MemoryBudgetError
from tests.engine.conftest import EngineMaker
from tests.engine.dense_beams import every_continuation, whole_tables
from tests.engine.driving import EOS, Samples, assert_same, finish, prompt, request, run

SEARCH: dict[str, Any] = {"temperature": 0.0, "n": 4, "beam_width": 4, "max_tokens": 8, "logprobs": 2}
VOCAB = 300


def search(name: str = "b", length: int = 21, **changes: Any) -> EngineRequest:
    return request(name, prompt(length, 7), **(SEARCH | changes))


def company() -> list[EngineRequest]:
    return [request(f"c{i}", prompt(9 + 8 * i, i), seed=i, max_tokens=14) for i in range(3)]


class Asked:
    """Log-probabilities as single requests get them, of all tokens but the least likely."""

    def __init__(self, engine: Engine, tokens: list[int]) -> None:
        self.engine, self.tokens = engine, tokens
        self.known: dict[tuple[int, ...], list[float]] = {}

    def __call__(self, behind: tuple[int, ...]) -> list[float]:
        if behind not in self.known:
            one = request("q", [*self.tokens, *behind], temperature=0.0, max_tokens=1, logprobs=256, ignore_eos=True)
            row = [-1e6] * VOCAB
            for entry in run(self.engine, one)["q", 0].logprobs[0].top:
                row[entry.token_id] = entry.logprob
            self.known[behind] = row
        return self.known[behind]


def assert_answers(found: Samples, wanted: Any) -> None:
    assert [tuple(found["b", i].tokens) for i in range(len(found))] == [tokens for tokens, _ in wanted[: len(found)]]


@pytest.mark.parametrize("changes", [{}, {"early_stopping": True, "stop_token_ids": [40, 77]}, {"length_penalty": 2.0}])
def test_beams_find_what_a_search_over_single_requests_finds(
    make_engine: EngineMaker, backend: str, changes: dict[str, Any]
) -> None:
    engine = make_engine(max_seqs=16)
    found = run(engine, search(**changes))
    ends = {EOS, *changes.get("stop_token_ids", [])}
    model = Asked(engine, prompt(21, 7))
    wanted = whole_tables(
        model, VOCAB, 8, ends, 4, changes.get("length_penalty", 1.0), changes.get("early_stopping", False)
    )
    assert_answers(found, wanted)
    assert found["b", 0].finish_reason in ("stop", "length"), backend


def test_with_a_beam_for_nearly_every_token_it_finds_the_best_of_all_continuations(make_engine: EngineMaker) -> None:
    engine = make_engine(max_seqs=256, kv_bytes=8 << 20)
    found = run(engine, search(n=8, beam_width=250, max_tokens=2, early_stopping="never", length_penalty=0.5))
    model = Asked(engine, prompt(21, 7))
    assert_answers(found, every_continuation(model, VOCAB, 2, {EOS}, 0.5))


def test_what_is_told_of_the_answers_is_what_scoring_them_tells(make_engine: EngineMaker) -> None:
    engine = make_engine()
    found = run(engine, search(ignore_eos=True))
    for i in range(4):
        sample = found["b", i]
        scored = request("s", [*prompt(21, 7), *sample.tokens], temperature=0.0, max_tokens=1, prompt_logprobs=2)
        wanted = run(engine, scored)["s", 0].prompt_logprobs
        assert wanted is not None
        if engine.backend.interpreter.batch_invariant:
            assert sample.logprobs == wanted[21:]
        assert [e.token.token_id for e in sample.logprobs] == sample.tokens


@pytest.mark.parametrize("budget", [1, 3, 17])
def test_the_size_of_steps_changes_nothing(make_engine: EngineMaker, budget: int) -> None:
    wanted = run(make_engine(), search())
    engine = make_engine(budget_tokens=budget)
    found = run(engine, search())
    for key, sample in found.items():
        assert_same(sample, wanted[key], exact=engine.backend.interpreter.batch_invariant)


@pytest.mark.parametrize("swap_bytes", [0, 1 << 20])
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_being_preempted_changes_nothing_for_beams_nor_samples(
    make_engine: EngineMaker, swap_bytes: int, prefix_cache: bool
) -> None:
    """Twelve blocks for three requests of six or so: each gives way now and then, as a whole."""
    samples: dict[str, Any] = {"max_tokens": 24, "ignore_eos": True, "temperature": 2.0, "logprobs": 3}
    requests = [
        search("b0", 33, max_tokens=20, ignore_eos=True),
        request("n", prompt(40, 3), n=3, seed=5, **samples),
        search("b1", 20, max_tokens=20, ignore_eos=True, beam_width=3, n=3),
    ]
    lone = make_engine(prefix_cache=False)
    wanted: Samples = run(lone, requests[0]) | run(lone, requests[2])
    for i in range(3):  # each of n forks is what a single request with its seed gets
        wanted["n", i] = run(lone, request("one", prompt(40, 3), seed=5 + i, **samples))["one", 0]
    block_bytes = lone.config.kv_bytes // lone.backend.memory.kv.num_blocks
    options = {"kv_bytes": 13 * block_bytes, "max_model_len": 80, "swap_bytes": swap_bytes}
    engine = make_engine(prefix_cache=prefix_cache, block_size=16, **options)
    found = run(engine, *requests)
    assert engine.scheduler.stats().preemptions > 0
    assert found.keys() == wanted.keys()
    for key, sample in found.items():
        assert_same(sample, wanted[key], exact=engine.backend.interpreter.batch_invariant)


def test_others_get_the_same_tokens_beside_beams(make_engine: EngineMaker) -> None:
    wanted: Samples = {}
    for one in (*company(), search()):
        wanted |= run(make_engine(prefix_cache=False, budget_tokens=256), one)
    engine = make_engine(budget_tokens=20)
    found: Samples = {}
    for one in (company()[0], search(), *company()[1:]):
        engine.add(one)
        finish(engine, found, steps=2)
    finish(engine, found)
    assert found.keys() == wanted.keys()
    for key, sample in found.items():
        assert_same(sample, wanted[key], exact=engine.backend.interpreter.batch_invariant)


def test_beams_are_aborted_whole_or_answer_by_answer(make_engine: EngineMaker) -> None:
    engine = make_engine()
    wanted = run(engine, search(ignore_eos=True))
    engine.add(search(ignore_eos=True))
    found = finish(engine, {}, steps=4)
    assert engine.scheduler.stats().running == 4
    engine.abort("b", 1)
    finish(engine, found)
    assert {index for _, index in found if found["b", index].finish_reason} == {0, 2, 3}
    assert all(found["b", i].tokens == wanted["b", i].tokens for i in (0, 2, 3))
    engine.add(search(ignore_eos=True))
    finish(engine, {}, steps=4)
    engine.abort("b")
    assert engine.scheduler.stats().blocks_used == 0
    assert not engine.has_work
    assert engine.counters.finished["abort"] == 5


def test_prompt_scores_come_with_the_first_answer(make_engine: EngineMaker) -> None:
    engine = make_engine()
    wanted = run(engine, request("p", prompt(21, 7), prompt_logprobs=2, max_tokens=1))["p", 0].prompt_logprobs
    found = run(engine, search(prompt_logprobs=2))
    assert found["b", 0].prompt_logprobs == wanted
    assert found["b", 1].prompt_logprobs is None


def test_a_recorded_search_is_run_again_exactly(make_engine: EngineMaker, tmp_path: Path) -> None:
    path = tmp_path / "run.record"
    engine = make_engine(record=str(path), budget_tokens=24)
    run(engine, *company(), search())
    engine.close()
    report = replay(path)
    assert report.exact, str(report)


def test_tokens_of_dropped_beams_are_counted_apart(make_engine: EngineMaker) -> None:
    engine = make_engine()
    engine.add(search(n=1, ignore_eos=True, max_tokens=5))
    updates = []
    while engine.has_work:
        updates += engine.step()
    (answer,) = [update for update in updates if update.finish_reason]
    assert len(answer.token_ids) == 5
    assert answer.discarded_tokens == engine.counters.generated_tokens - 5 == 1 + 4 * 4 - 5
    assert [update.searched_tokens for update in updates] == [1, 2, 3, 4, 0]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"temperature": 0.7}, "temperature"),
        ({"top_k": 5}, "top_k"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"allowed_token_ids": [1]}, "allowed_token_ids"),
        ({"bad_words": ["x"]}, "bad_words"),
        ({"logit_bias": {1: 1.0}}, "logit_bias"),
        ({"stop": "x"}, "stop"),
        ({"best_of": 4}, "best_of"),
        ({"n": 5}, "n"),
        ({"beam_width": 0}, "beam_width"),
        ({"beam_width": 257}, "beam_width"),
        ({"length_penalty": 11.0}, "length_penalty"),
        ({"length_penalty": float("nan")}, "length_penalty"),
        ({"early_stopping": "soon"}, "early_stopping"),
        ({"beam_width": None, "length_penalty": 0.5}, "length_penalty"),
        ({"beam_width": None, "early_stopping": True}, "early_stopping"),
        ({"beam_width": None, "best_of": 3}, "best_of"),
    ],
)
def test_what_makes_no_sense_with_beams_is_refused_by_its_name(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(InputError) as caught:
        SamplingParams(**(SEARCH | changes))
    assert caught.value.param == param


def test_wider_than_the_engine_or_the_pool_is_refused_before_any_work(make_engine: EngineMaker) -> None:
    engine = make_engine(max_seqs=300)
    with pytest.raises(InputError, match=r"beam_width is 5, but this engine runs 4 sequences"):
        make_engine(max_seqs=4).add(search(beam_width=5))
    with pytest.raises(InputError, match="begin anew"):
        engine.add(search(delivered=[[5]]))
    with pytest.raises(
        MemoryBudgetError, match=r"60 outputs from one prompt .* fewer outputs, lower max_tokens to at most \d+"
    ):
        engine.add(search(beam_width=60, max_tokens=200))
    with pytest.raises(MemoryBudgetError, match="outputs from one prompt"):
        engine.add(request("n", prompt(21, 7), n=200, max_tokens=200))
    assert not engine.has_work
    found = run(engine, request("n", prompt(21, 7), n=30, max_tokens=None, ignore_eos=True))
    lengths = {len(sample.tokens) for sample in found.values()}
    assert len(lengths) == 1  # without a limit of its own it is what the pool holds for all
    assert engine.scheduler.stats().preemptions == 0
