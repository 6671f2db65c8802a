"""When a sample ends, and why."""

from __future__ import annotations

import pytest

from puna.engine.core import Engine
from puna.kernels.batch import StepBatch
from tests.engine.conftest import EngineMaker
from tests.engine.driving import EOS, Sample, finish, prompt, request, run


def draw(engine: Engine, **params: object) -> Sample:
    return run(engine, request("r", prompt(10, 1), **params))["r", 0]


def test_an_end_of_sequence_token_ends_a_sample_and_is_its_last_token(make_engine: EngineMaker) -> None:
    sample = draw(make_engine(), logit_bias={EOS: 100.0})
    assert (sample.tokens, sample.finish_reason, sample.stop_token_id) == ([EOS], "stop", None)


def test_ignore_eos_draws_on(make_engine: EngineMaker) -> None:
    sample = draw(make_engine(), logit_bias={EOS: 100.0}, ignore_eos=True, max_tokens=5)
    assert (sample.tokens, sample.finish_reason) == ([EOS] * 5, "length")


def test_a_stop_id_ends_a_sample_and_is_named(make_engine: EngineMaker) -> None:
    sample = draw(make_engine(), logit_bias={7: 100.0}, stop_token_ids=[9, 7])
    assert (sample.tokens, sample.finish_reason, sample.stop_token_id) == ([7], "stop", 7)


def test_before_min_tokens_neither_end_nor_stop_ids_are_drawn(make_engine: EngineMaker) -> None:
    bias = {EOS: 100.0, 7: 60.0, 8: 30.0}
    sample = draw(make_engine(), logit_bias=bias, stop_token_ids=[7], min_tokens=4)
    assert (sample.tokens, sample.finish_reason) == ([8, 8, 8, 8, EOS], "stop")


def test_min_tokens_forbids_no_end_id_that_is_ignored(make_engine: EngineMaker) -> None:
    sample = draw(make_engine(), logit_bias={EOS: 100.0}, ignore_eos=True, min_tokens=3, max_tokens=3)
    assert sample.tokens == [EOS] * 3


def test_max_tokens_ends_a_sample(make_engine: EngineMaker) -> None:
    sample = draw(make_engine(), max_tokens=3, ignore_eos=True)
    assert (len(sample.tokens), sample.finish_reason) == (3, "length")


def test_without_max_tokens_the_context_ends_a_sample(make_engine: EngineMaker) -> None:
    sample = draw(make_engine(max_model_len=40), max_tokens=None, ignore_eos=True)
    assert (len(sample.tokens), sample.finish_reason) == (30, "length")


def test_a_prompt_that_leaves_room_for_one_token_gets_one(make_engine: EngineMaker) -> None:
    engine = make_engine(max_model_len=40)
    sample = run(engine, request("r", prompt(39, 1), max_tokens=None, ignore_eos=True))["r", 0]
    assert (len(sample.tokens), sample.finish_reason) == (1, "length")


def test_only_allowed_tokens_are_drawn(make_engine: EngineMaker) -> None:
    sample = draw(make_engine(), allowed_token_ids=[20, 30], temperature=5.0, max_tokens=40)
    assert set(sample.tokens) == {20, 30}


def test_a_bad_word_of_several_tokens_is_never_completed(make_engine: EngineMaker) -> None:
    engine = make_engine()
    free = draw(engine, allowed_token_ids=[20, 30], temperature=5.0, max_tokens=60).tokens
    kept = draw(engine, allowed_token_ids=[20, 30], temperature=5.0, max_tokens=60, bad_word_ids=[[20, 30, 30]]).tokens
    triples = {tuple(free[i : i + 3]) for i in range(58)}
    assert (20, 30, 30) in triples
    assert (20, 30, 30) not in {tuple(kept[i : i + 3]) for i in range(58)}
    assert 30 in kept


def test_a_bad_word_may_not_be_completed_behind_the_prompt_only_by_output(make_engine: EngineMaker) -> None:
    engine = make_engine()
    one = request("r", [5, 20], allowed_token_ids=[30], bad_word_ids=[[20, 30]], max_tokens=1)
    assert run(engine, one)["r", 0].tokens == [30], "bad words are about what is written, not about the prompt"


def test_a_sample_that_runs_out_of_allowed_tokens_fails_alone(make_engine: EngineMaker) -> None:
    engine = make_engine()
    cornered = request("bad", prompt(9, 1), allowed_token_ids=[20], bad_word_ids=[[20, 20]])
    found = run(engine, cornered, request("good", prompt(9, 2), max_tokens=5, ignore_eos=True))
    assert found["bad", 0].tokens == [20]
    assert found["bad", 0].finish_reason == "error"
    assert "allowed_token_ids" in str(found["bad", 0].error)
    assert (len(found["good", 0].tokens), found["good", 0].finish_reason) == (5, "length")
    assert engine.counters.finished == {"stop": 0, "length": 1, "abort": 0, "error": 1}


def test_of_n_samples_only_the_faulty_ones_end(make_engine: EngineMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    engine.add(request("r", prompt(9, 1), n=3, max_tokens=4, min_tokens=1))
    samples = engine._live["r"].streams[0].samples
    broken = type(samples[0].recipe).banned

    def fails(recipe: object, tokens: object) -> list[int]:
        if recipe is samples_recipes[0]:
            raise RuntimeError("its grammar is broken")
        return broken(recipe, tokens)  # type: ignore[arg-type]

    samples_recipes = [sample.recipe for sample in samples]
    monkeypatch.setattr(type(samples[0].recipe), "banned", fails)
    found = finish(engine)
    assert (found["r", 0].finish_reason, found["r", 0].error) == ("error", "its grammar is broken")
    assert [len(found["r", i].tokens) for i in (1, 2)] == [4, 4]


def test_a_failed_step_gives_its_blocks_back_and_may_be_tried_again(
    make_engine: EngineMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    wanted = draw(engine)
    engine.add(request("again", prompt(10, 1)))
    interpreter = engine.backend.interpreter

    def fails(_: StepBatch) -> None:
        raise MemoryError("no room for activations")

    with monkeypatch.context() as patch:
        patch.setattr(interpreter, "step", fails)
        with pytest.raises(MemoryError):
            engine.step()
    assert finish(engine)["again", 0].tokens == wanted.tokens
