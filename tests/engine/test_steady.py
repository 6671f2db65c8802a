"""Steps that repeat the one before are patched, not built anew, and nobody can tell from the answers."""

from __future__ import annotations

from typing import Any

import pytest

from puna.engine.core import Engine
from puna.engine.params import EngineRequest
from puna.engine.runner import PreparedStep, Runner
from puna.sched.step import ScheduledStep
from tests.engine.conftest import EngineMaker
from tests.engine.driving import assert_same, finish, prompt, request, run

LONG = {"max_tokens": 150, "ignore_eos": True}


def everyone() -> list[EngineRequest]:
    return [
        request("plain", prompt(9, 1), logprobs=None, **LONG),
        request(
            "penalised", prompt(20, 2), repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2, **LONG
        ),
        request("biased", prompt(15, 3), logit_bias={5: 2.0, 70: -3.0}, logprobs=3, **LONG),
        request("late to end", prompt(31, 4), min_tokens=20, **(LONG | {"ignore_eos": False})),
        request("short", prompt(33, 5), max_tokens=40, ignore_eos=True),
        request("greedy", prompt(47, 6), temperature=0.0, **LONG),
    ]


def without_repeating(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    prepare = Runner.prepare

    def anew(self: Runner, step: ScheduledStep, last_drawn: Any = None) -> PreparedStep:  # noqa: ARG001
        return prepare(self, step)

    monkeypatch.setattr(Runner, "prepare", anew)
    return engine


def test_repeated_steps_give_the_answers_of_steps_built_anew(
    make_engine: EngineMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(make_engine(), *everyone())
    with monkeypatch.context() as patch:
        wanted = run(without_repeating(make_engine(), patch), *everyone())
    assert len(found) == len(everyone())
    for key, sample in wanted.items():
        assert_same(found[key], sample, exact=True)


def test_a_step_that_repeats_is_the_same_batch_and_costs_no_arrays(make_engine: EngineMaker) -> None:
    engine = make_engine()
    for one in everyone():
        engine.add(one)
    seen: list[PreparedStep] = []
    prepare = engine._runner.prepare

    def watched(step: ScheduledStep, last_drawn: Any = None) -> PreparedStep:
        seen.append(prepare(step, last_drawn))
        return seen[-1]

    engine._runner.prepare = watched  # type: ignore[method-assign]
    finish(engine)
    built = len({id(prepared) for prepared in seen})
    assert built < 60 < len(seen), f"{built} of {len(seen)} steps were built"  # 20 of them while min_tokens holds


def test_whoever_comes_or_goes_in_the_middle_changes_nothing_for_the_others(make_engine: EngineMaker) -> None:
    alone = {key: sample for one in everyone() for key, sample in run(make_engine(), one).items()}
    engine = make_engine()
    first, *later = everyone()
    engine.add(first)
    samples = finish(engine, steps=10)
    for one in later:
        engine.add(one)
        finish(engine, samples, steps=7)
    engine.abort("biased")
    finish(engine, samples)
    for key, sample in alone.items():
        if key[0] != "biased":
            assert_same(samples[key], sample, exact=engine.backend.interpreter.batch_invariant)


def test_news_are_a_column_of_tokens_while_everybody_decodes(make_engine: EngineMaker) -> None:
    engine = make_engine()
    for i in range(4):
        engine.add(request(f"r{i}", prompt(10, i), logprobs=1 if i == 3 else None, max_tokens=20 + i, ignore_eos=True))
    finish(engine, steps=3)
    first, second = engine.step(), engine.step()
    assert first.roster is second.roster
    assert second.roster is not None
    assert second.tokens is not None
    assert second.roster.names == (("r0", 0), ("r1", 0), ("r2", 0), ("r3", 0))
    assert [token >= 0 for token in second.tokens] == [True, True, True, False]
    assert [(update.request_id, update.logprobs is not None) for update in second.updates] == [("r3", True)]
    assert [update.request_id for update in second] == ["r0", "r1", "r2", "r3"]
    finish(engine)
