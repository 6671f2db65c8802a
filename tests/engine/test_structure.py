"""Answers that have to take a form: in crowds, forks, preemption, after a crash, with other parameters, recorded."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from puna.engine.core import Engine
from puna.engine.ends import NOT_NUMBERS
from puna.engine.grammars import Grammars
from puna.engine.params import EngineRequest
from puna.engine.replay import replay
from puna.engine.structure import StructuredOutputs
from puna.errors import InputError
from tests.engine.conftest import EngineMaker, native
from tests.engine.driving import EOS, Samples, assert_same, finish, prompt, request, run

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["a", "b", None]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
    },
    "required": ["name", "kind", "sizes"],
    "additionalProperties": False,
}
FORMS: dict[str, dict[str, Any]] = {
    "schema": {"json": SCHEMA},
    "spacious": {"json": SCHEMA, "any_whitespace": True},
    "regex": {"regex": "[a-f]{3}(-[0-9]{2}){1,4}"},
    "choice": {"choice": ["yes", "no", "not at all"]},
    "grammar": {"grammar": 'start: "(" start ")" | /[xyz]{1,3}/'},
}


cpu_alone = pytest.mark.parametrize("backend", [pytest.param("cpu", marks=native)], indirect=True)


def held(name: str, number: int, form: str, **params: Any) -> EngineRequest:
    wanted = {"max_tokens": 90, "temperature": 1.0} | params
    return request(name, prompt(10 + number, number), structured_outputs=StructuredOutputs(**FORMS[form]), **wanted)


def text_of(engine: Engine, tokens: list[int]) -> str:
    return engine.backend.model.tokenizer.decode(tokens)


def assert_has_form(form: str, text: str) -> None:
    match form:
        case "schema" | "spacious":
            value = json.loads(text)
            assert list(value) == ["name", "kind", "sizes"]
            assert len(value["name"]) <= 12
            assert value["kind"] in ("a", "b", None)
            assert all(type(size) is int and 0 <= size <= 99 for size in value["sizes"])
            assert form == "spacious" or len(text) == len(
                json.dumps(value, separators=(",", ":"), ensure_ascii="\\" in text)
            )
        case "regex":
            assert re.fullmatch(FORMS["regex"]["regex"], text)
        case "choice":
            assert text in FORMS["choice"]["choice"]
        case "grammar":
            assert re.fullmatch(r"\(*[xyz]{1,3}\)*", text)
            assert text.count("(") == text.count(")")


def everyone() -> list[EngineRequest]:
    return [
        held("schema", 1, "schema"),
        held("spacious", 2, "spacious", logprobs=None),
        held("regex", 3, "regex", logprobs=3),
        held("choice", 4, "choice", logprobs=None),
        held("grammar", 5, "grammar", temperature=1.7),
        request("free", prompt(20, 6), max_tokens=60, ignore_eos=True, logprobs=None),
        held("greedy", 7, "schema", temperature=0.0),
    ]


def test_every_answer_that_stops_has_its_form(make_engine: EngineMaker) -> None:
    engine = make_engine()
    found = run(engine, *everyone())
    stopped = 0
    for one in everyone():
        sample = found[one.request_id, 0]
        form = "schema" if one.request_id == "greedy" else one.request_id
        assert sample.error is None
        if sample.finish_reason == "stop" and form != "free":
            stopped += 1
            tokens = sample.tokens[:-1] if sample.tokens[-1] in one.eos_token_ids else sample.tokens
            assert_has_form(form, text_of(engine, tokens))
    assert stopped >= 3


@cpu_alone
def test_an_answer_is_the_same_alone_and_beside_others(make_engine: EngineMaker) -> None:
    together, engine = run(make_engine(), *everyone()), make_engine()
    for one in everyone():
        alone = run(engine, one)
        assert_same(together[one.request_id, 0], alone[one.request_id, 0], exact=True)


def test_samples_of_one_prompt_are_single_requests_with_their_seeds(make_engine: EngineMaker) -> None:
    engine = make_engine()
    many = run(engine, held("many", 3, "schema", n=4, seed=5))
    assert len({tuple(sample.tokens) for sample in many.values()}) > 1
    for index in range(4):
        single = run(engine, held("one", 3, "schema", seed=5 + index))
        assert_same(many["many", index], single["one", 0], exact=engine.config.backend == "cpu")


@cpu_alone
@pytest.mark.parametrize("swap", [False, True])
def test_preemption_changes_no_answer(make_engine: EngineMaker, swap: bool) -> None:
    form = StructuredOutputs(regex="[a-f]{70}")
    everyone = [request(str(i), prompt(10 + i, i), structured_outputs=form, max_tokens=90) for i in range(5)]
    probe = make_engine()
    wanted = run(probe, *everyone)
    blocks = 14 * (probe.config.kv_bytes // probe.backend.memory.kv.num_blocks)
    small = make_engine(kv_bytes=blocks, max_model_len=160, swap_bytes=blocks if swap else 0)
    found = run(small, *everyone)
    assert small.scheduler.stats().preemptions
    for key, sample in wanted.items():
        assert sample.finish_reason == "stop"
        assert_same(found[key], sample, exact=True)


@cpu_alone
def test_a_request_goes_on_behind_every_token_that_was_delivered(make_engine: EngineMaker) -> None:
    engine = make_engine()
    whole = run(engine, held("whole", 2, "schema", logprobs=None))["whole", 0]
    assert whole.finish_reason == "stop"
    for count in range(len(whole.tokens) + 1):
        rest = held(f"rest {count}", 2, "schema", delivered=[whole.tokens[:count]], logprobs=None)
        found = run(engine, rest)[f"rest {count}", 0]
        assert whole.tokens[:count] + found.tokens == whole.tokens
        assert found.finish_reason == "stop"


def test_delivered_tokens_that_break_the_form_end_their_sample_alone(make_engine: EngineMaker) -> None:
    engine = make_engine()
    found = run(engine, held("broken", 2, "choice", n=2, delivered=[[200], []]))
    assert "cannot be followed" in str(found["broken", 0].error)
    assert found["broken", 1].finish_reason == "stop"


def test_an_answer_that_is_complete_ends_without_another_token(make_engine: EngineMaker) -> None:
    """Also where it has as many tokens as it may have, and where no token is known to end it."""
    engine = make_engine()
    for params in ({"max_tokens": 5}, {"max_tokens": 50}, {"ignore_eos": True}, {"eos_token_ids": []}):
        one = request("one", prompt(9, 1), structured_outputs=StructuredOutputs(regex="[ab]{5}"), **params)
        sample = run(engine, one)["one", 0]
        assert sample.finish_reason == "stop"
        assert re.fullmatch("[ab]{5}", text_of(engine, sample.tokens))
    cut = request("cut", prompt(9, 1), structured_outputs=StructuredOutputs(regex="[ab]{5}"), max_tokens=4)
    assert run(engine, cut)["cut", 0].finish_reason == "length"


def test_other_parameters_narrow_what_a_form_allows(make_engine: EngineMaker) -> None:
    engine = make_engine()
    at = {engine.backend.model.tokenizer.token_bytes(token): token for token in range(259)}

    def text(regex: str, **params: Any) -> str:
        form = StructuredOutputs(regex=regex)
        sample = run(engine, request("one", prompt(9, 1), structured_outputs=form, **params))["one", 0]
        assert sample.error is None, sample.error
        return text_of(engine, [token for token in sample.tokens if token != EOS])

    assert text("[abc]{6}", allowed_token_ids=[at[b"b"], at[b"z"]]) == "bbbbbb"
    assert "a" not in text("[ab]{12}", bad_word_ids=[[at[b"a"]]])
    assert text("[abc]{6}", logit_bias={at[b"c"]: 100.0}) == "cccccc"
    assert text("[abc]{6}", logit_bias={at[b"z"]: 100.0}).strip("abc") == ""
    assert len(text("a{0,30}", min_tokens=7, max_tokens=40)) >= 7
    assert re.fullmatch("a{2,9}b?", text("[ab]{2,9}", stop_token_ids=[at[b"b"]], seed=3))
    assert len(text("[ab]{2,9}", repetition_penalty=1.9, min_p=0.2, top_k=3, top_p=0.8)) >= 2


def test_nothing_left_to_draw_is_an_error_of_that_sample_alone(make_engine: EngineMaker) -> None:
    engine = make_engine()
    at = {engine.backend.model.tokenizer.token_bytes(token): token for token in range(259)}
    form = StructuredOutputs(regex="aa|b{4}")
    requests = [
        request("bans", prompt(9, 1), structured_outputs=form, bad_word_ids=[[at[b"a"]], [at[b"b"]]]),
        request("list", prompt(9, 2), structured_outputs=form, allowed_token_ids=[at[b"z"]]),
        request("more", prompt(9, 3), structured_outputs=form, min_tokens=5),
        held("fine", 4, "schema"),
        request("free", prompt(9, 5), max_tokens=40, ignore_eos=True),
    ]
    found = run(engine, *requests)
    for name in ("bans", "list", "more"):
        assert found[name, 0].finish_reason == "error"
        assert "no token is left" in str(found[name, 0].error)
        assert found[name, 0].error != NOT_NUMBERS
    for one in requests[3:]:
        assert_same(found[one.request_id, 0], run(engine, one)[one.request_id, 0], exact=False)


def test_a_grammar_is_compiled_beside_steps_and_an_abort_does_not_wait_for_it(
    make_engine: EngineMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    compile_it = Grammars._compile

    def slowly(self: Grammars, form: StructuredOutputs) -> Any:
        go.wait()
        return compile_it(self, form)

    monkeypatch.setattr(Grammars, "_compile", slowly)
    engine = make_engine()
    engine.add(held("waits", 1, "schema"))
    engine.add(held("leaves", 2, "regex"))
    engine.add(request("free", prompt(20, 6), max_tokens=40, ignore_eos=True))
    with pytest.raises(InputError, match="in use"):
        engine.add(held("waits", 1, "choice"))
    found: Samples = {}
    for _ in range(60):
        finish(engine, found, steps=1)
    assert found["free", 0].finish_reason == "length"
    assert engine.has_work
    assert set(engine.live_requests) == {"waits", "leaves"}
    engine.abort("leaves")
    assert engine.live_requests == ("waits",)
    go.set()
    finish(engine, found)
    assert found["waits", 0].error is None
    assert set(found) == {("free", 0), ("waits", 0)}


def test_a_grammar_that_does_not_compile_refuses_its_request_before_any_work(make_engine: EngineMaker) -> None:
    engine = make_engine()
    bad = request("bad", prompt(9, 1), structured_outputs=StructuredOutputs(json={"not": {}}, named="response_format"))
    with pytest.raises(InputError, match="uses not") as caught:
        engine.compile(bad)
    assert caught.value.param == "response_format"
    fresh = make_engine()
    fresh.add(bad)
    fresh.add(held("fine", 1, "choice"))
    refused, found = [], []
    while fresh.has_work:
        news = fresh.step()
        refused += news.refused
        found += list(news)
    ((name, error),) = refused
    assert (name, "uses not" in str(error)) == ("bad", True)
    assert {update.request_id for update in found} == {"fine"}
    with pytest.raises(InputError):
        fresh.add(msgspec.structs.replace(bad, request_id="again"))  # its grammar is known by now
    assert not fresh.has_work


@cpu_alone
def test_a_recorded_run_with_forms_is_replayed_exactly(make_engine: EngineMaker, tmp_path: Path) -> None:
    path = tmp_path / "run.record"
    engine = make_engine(record=str(path))
    run(engine, *everyone(), held("many", 3, "schema", n=3))
    engine.close()
    report = replay(path)
    assert report.exact, str(report)
    assert report.tokens > 100
