"""Grammars on vocabularies of every kind, without a model: masks beside brute force, forms, refusals, hostile texts."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.engine.grammar_library import GrammarLibrary, TokenBytes
from puna.engine.grammar_text import grammar_text
from puna.engine.grammar_trial import GrammarTrial
from puna.engine.grammars import MAX_WAITING, Grammars
from puna.engine.matcher import Matcher
from puna.engine.structure import StructuredOutputs
from puna.errors import InputError, OverloadedError
from puna.models.load import load_model
from puna.models.names import resolve
from puna.models.tokenizer import Tokenizer
from tests.models.small_tokenizers import folder_tokenizer, sentencepiece_bpe, unigram
from tests.schemas import schemas
from tests.tiny import write_tiny_llama

KINDS = ("byte-level", "SentencePiece", "unigram")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    def folder(name: str) -> Path:
        return tmp_path_factory.mktemp(name)

    config = {"tokenizer_config": {"eos_token": "</s>"}}
    tiny = load_model(write_tiny_llama(folder("tiny") / "tiny.gguf")).tokenizer
    return {
        "byte-level": tiny,
        "SentencePiece": folder_tokenizer(folder("bpe"), tokenizer=sentencepiece_bpe(), **config),
        "unigram": folder_tokenizer(folder("unigram"), tokenizer=unigram(), **config),
    }


@pytest.fixture(scope="module")
def libraries(tokenizers: dict[str, Tokenizer]) -> dict[str, tuple[TokenBytes, GrammarLibrary]]:
    vocabularies = {kind: TokenBytes.of(one, one.vocab_size + 5) for kind, one in tokenizers.items()}
    return {kind: (vocabulary, GrammarLibrary(vocabulary)) for kind, vocabulary in vocabularies.items()}


def mask_of(matcher: Matcher, count: int) -> set[int]:
    row = np.zeros(-(-count // 32), np.uint32)
    matcher.write_mask(row, row.ctypes.data)
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")[:count]).tolist())


def begin(library: GrammarLibrary, ends: frozenset[int] | None = None, **form: Any) -> Matcher:
    compiled = library.compile(grammar_text(StructuredOutputs(**form)), "form")
    return Matcher(compiled, library.ends, library.ends if ends is None else ends)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("thelam ", min_size=1, max_size=6), min_size=1, max_size=5, unique=True), st.data())
def test_a_mask_allows_the_tokens_whose_bytes_can_go_on(
    libraries: dict[str, tuple[TokenBytes, GrammarLibrary]], kind: str, choices: list[str], data: st.DataObject
) -> None:
    """Where there is no choice of text, one of its tokens is chosen; otherwise all that fit are allowed."""
    vocabulary, library = libraries[kind]
    matcher, written = begin(library, choice=choices), b""
    whole = [choice.encode() for choice in choices]
    while not matcher.over:
        found = mask_of(matcher, len(vocabulary.tokens))
        rest = [choice[len(written) :] for choice in whole if choice.startswith(written)]
        fitting = {
            token
            for token, text in enumerate(vocabulary.tokens)
            if text and token not in vocabulary.special and any(tail.startswith(text) for tail in rest)
        }
        if b"" in rest:
            fitting |= library.ends
        free = len({tail[:1] for tail in rest}) > 1
        assert found == fitting if free else found and found <= fitting
        if kind == "unigram" and not found:
            return
        token = data.draw(st.sampled_from(sorted(found)))
        if token in library.ends:
            assert written in whole
            return
        matcher.take(token)
        written += vocabulary.tokens[token]
    assert written in whole


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_are_special_or_stand_for_nothing_are_never_text(
    libraries: dict[str, tuple[TokenBytes, GrammarLibrary]], kind: str
) -> None:
    vocabulary, library = libraries[kind]
    found = mask_of(begin(library, regex="(?s:.*)"), len(vocabulary.tokens))
    assert found & set(vocabulary.special) == library.ends
    assert not [token for token in found if not vocabulary.tokens[token]]
    assert len(found) > len(vocabulary.tokens) // 2


@pytest.mark.model
def test_the_vocabulary_of_a_real_model_spells_json() -> None:
    tokenizer = load_model(resolve("smollm2")).tokenizer
    vocabulary = TokenBytes.of(tokenizer, tokenizer.vocab_size)
    matcher = begin(GrammarLibrary(vocabulary), json={"type": "object"})
    text = '{"größe":1,"x y":["é\\n",null,{"a":-2.5e3}]}'
    for token in tokenizer.encode(text, add_special=False):
        assert token in mask_of(matcher, len(vocabulary.tokens)), vocabulary.tokens[token]
        matcher.take(token)
    assert matcher.over
    assert matcher.accepts


def test_an_end_is_allowed_only_where_the_grammar_accepts(
    libraries: dict[str, tuple[TokenBytes, GrammarLibrary]],
) -> None:
    """Also an end that is an ordinary token, and then it is no text; one that does not end this sample never is."""
    vocabulary, library = libraries["byte-level"]
    at = {text: token for token, text in enumerate(vocabulary.tokens)}
    matcher = begin(library, frozenset({at[b"b"], 0}), regex="[ab]{2,3}")
    assert mask_of(matcher, len(at)) == {at[b"a"]}
    matcher.take(at[b"a"])
    assert mask_of(matcher, len(at)) == {at[b"a"]}
    matcher.take(at[b"a"])
    assert mask_of(matcher, len(at)) == {at[b"a"], at[b"b"], 0}
    matcher.take(at[b"b"])  # ends the sample, and is no part of the text
    assert not matcher.over
    matcher.take(at[b"a"])
    assert matcher.over


def test_a_token_that_is_not_allowed_is_an_error_of_this_matcher_alone(
    libraries: dict[str, tuple[TokenBytes, GrammarLibrary]],
) -> None:
    vocabulary, library = libraries["byte-level"]
    at = {text: token for token, text in enumerate(vocabulary.tokens)}
    compiled = library.compile(grammar_text(StructuredOutputs(regex="[ab]+")), "form")
    first, second = (Matcher(compiled.deep_copy(), library.ends, library.ends) for _ in range(2))
    first.take(at[b"c"])
    assert "cannot be followed" in str(first.error)
    assert mask_of(first, len(at)) == set()
    assert not first.accepts
    second.take(at[b"a"])
    assert second.error is None
    assert mask_of(second, len(at)) == {at[b"a"], at[b"b"], *library.ends}


def test_a_dead_end_is_an_error_and_not_an_end(libraries: dict[str, tuple[TokenBytes, GrammarLibrary]]) -> None:
    """The unigram vocabulary here has no token for "x": the library itself would let the answer end before it."""
    vocabulary, library = libraries["unigram"]
    at = {text: token for token, text in enumerate(vocabulary.tokens)}
    matcher = begin(library, regex="t(h|e)x")
    matcher.take(at[b"t"])
    matcher.take(next(token for token in (at[b"h"], at[b"e"]) if token in mask_of(matcher, len(vocabulary.tokens))))
    assert mask_of(matcher, len(vocabulary.tokens)) == set()
    assert matcher.error is not None
    assert not matcher.accepts


def greedy(library: GrammarLibrary, vocabulary: TokenBytes, **form: Any) -> str:
    """The text of one walk: always the first token that is allowed, an end as soon as there is one."""
    matcher, text = begin(library, **form), b""
    while not matcher.over and len(text) < 200:
        found = mask_of(matcher, len(vocabulary.tokens))
        assert matcher.error is None
        if found & library.ends:
            break
        token = min(found)
        matcher.take(token)
        text += vocabulary.tokens[token]
    return text.decode()


def test_json_is_compact_unless_white_space_is_asked_for_and_then_it_is_bounded(
    libraries: dict[str, tuple[TokenBytes, GrammarLibrary]],
) -> None:
    vocabulary, library = libraries["byte-level"]
    at = {text: token for token, text in enumerate(vocabulary.tokens)}
    schema = {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2}
    assert greedy(library, vocabulary, json=schema) == "[1,1]"
    for spaces in range(40):
        matcher = begin(library, json=schema, any_whitespace=True)
        for token in [at[b"["], *[at[b" "]] * spaces]:
            matcher.take(token)
        if matcher.error is not None:
            break
    assert 2 <= spaces <= 20


def test_a_choice_may_have_any_characters(libraries: dict[str, tuple[TokenBytes, GrammarLibrary]]) -> None:
    vocabulary, library = libraries["byte-level"]
    for choice in ('say "hi"', "back\\slash", "line\nend\ttab", "größe 😀", "/slash/ [a-z]+ {x}", "'"):
        assert greedy(library, vocabulary, choice=[choice]) == choice


def test_gbnf_is_a_grammar_too(libraries: dict[str, tuple[TokenBytes, GrammarLibrary]]) -> None:
    vocabulary, library = libraries["byte-level"]
    text = '# a comment\nroot ::= "a" tail\ntail ::= [b-c]{2} | "d"'
    assert greedy(library, vocabulary, grammar=text) == "abb"


def walk(library: GrammarLibrary, vocabulary: TokenBytes, chance: random.Random, schema: Any) -> str | None:
    """The text of a random walk that prefers what closes something; None where it has not ended in time."""
    matcher, text = begin(library, json=schema, any_whitespace=chance.random() < 0.2), b""
    closing = {token for token, spelled in enumerate(vocabulary.tokens) if spelled in (b'"', b"}", b"]", b",")}
    for _ in range(700):
        if matcher.over:
            return text.decode()
        found = mask_of(matcher, len(vocabulary.tokens))
        assert matcher.error is None, matcher.error
        if found & library.ends and chance.random() < 0.5:
            return text.decode()
        preferred = sorted(found & closing if chance.random() < 0.3 else found - library.ends)
        token = chance.choice(preferred or sorted(found - library.ends))
        matcher.take(token)
        text += vocabulary.tokens[token]
    return None


def test_every_text_that_the_grammars_of_many_schemas_allow_is_valid(
    libraries: dict[str, tuple[TokenBytes, GrammarLibrary]],
) -> None:
    """Not one token is chosen by a model here: what is valid is the grammar's doing."""
    vocabulary, library = libraries["byte-level"]
    validator, ended = jsonschema.Draft202012Validator, 0
    for number, schema in enumerate(schemas(100, seed=1)):
        text = walk(library, vocabulary, random.Random(number), schema)
        if text is not None:
            ended += 1
            validator(schema, format_checker=validator.FORMAT_CHECKER).validate(json.loads(text))
    assert ended >= 85


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        (
            {"format": "date", "type": "string"},
            ["2024-02-29", "2000-02-29"],
            ["2021-02-29", "1900-02-29", "2023-04-31"],
        ),
        ({"format": "time", "type": "string"}, ["22:59:59Z"], ["22:59:60Z"]),
        (
            {"format": "date-time", "type": "string", "pattern": "^2"},
            ["2024-02-29T10:00:00Z"],
            ["1999-12-31T10:00:00Z"],
        ),
        ({"const": {"format": "date"}}, [{"format": "date"}], []),
        ({"const": "nul\0here"}, ["nul\0here"], ["nulhere"]),
        (
            {"properties": {"enum": {"format": "date", "type": "string"}}, "required": ["enum"], "type": "object"},
            [{"enum": "2024-02-29"}],
            [{"enum": "2023-02-29"}],
        ),
    ],
)
def test_formats_and_constants_are_held_to_the_letter(
    libraries: dict[str, tuple[TokenBytes, GrammarLibrary]], schema: Any, valid: list[Any], invalid: list[Any]
) -> None:
    vocabulary, library = libraries["byte-level"]
    at = {text: token for token, text in enumerate(vocabulary.tokens)}

    def accepts(value: Any) -> bool:
        matcher = begin(library, json=schema)
        matcher.take_all(at[bytes([byte])] for byte in json.dumps(value, separators=(",", ":")).encode())
        return matcher.accepts

    assert [accepts(value) for value in (*valid, *invalid)] == [True] * len(valid) + [False] * len(invalid)


def test_a_trial_that_takes_too_long_is_ended_and_the_next_one_runs(tokenizers: dict[str, Tokenizer]) -> None:
    trial = GrammarTrial(TokenBytes.of(tokenizers["byte-level"], 300), seconds=0.01)
    try:
        with pytest.raises(InputError, match="s to compile") as caught:
            trial.run(StructuredOutputs(json=grown(24), named="form"))
        assert caught.value.param == "form"
        assert "after" in trial.run(StructuredOutputs(regex="after"))
    finally:
        trial.close()
    with pytest.raises(InputError):
        trial.run(StructuredOutputs(regex="closed"))


# What cannot be enforced, or cannot be: and what the error has to name.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
    ({"json": {"not": {"type": "string"}}}, "not"),
    ({"json": {"type": "object", "properties": {"a": {"if": {}, "then": {}}}}}, "if, then"),
    ({"json": {"contains": {"type": "string"}}}, "contains"),
    ({"json": {"type": "string", "format": "iri"}}, "iri"),
    ({"json": {"$ref": "https://example.org/other.json"}}, "example.org"),
    ({"json": {"$ref": "#/$defs/none"}}, "none"),
    ({"json": {"oneOf": [{"type": "string"}, {"maxLength": 3}]}}, "oneOf"),
    ({"json": {"type": "integer", "minimum": 5, "maximum": 3}}, "minimum"),
    ({"json": {"allOf": [{"type": "string"}, {"type": "integer"}]}}, "incompatible types"),
    ({"json": {"x-guidance": {"lenient": True}, "not": {}}}, "not"),
    ({"json": {"type": "strange"}}, "strange"),
    ({"json": False}, "false"),
    ({"json": "[1]"}, "list"),
    ({"json": "{"}, "JSON"),
    ({"json": '{"a":' * 3000 + "1" + "}" * 3000}, "deep"),
    ({"json": {"type": "string", "pattern": "(?=a)b"}}, "look-around"),
    ({"regex": "a("}, "unclosed"),
    ({"regex": "[^\\s\\S]"}, ""),
    ({"grammar": "nonsense"}, "GBNF"),
    ({"grammar": "start: other"}, "other"),
    ({"grammar": '{"grammars": []}'}, "JSON"),
    ({"grammar": 'start: start "a"'}, ""),
]


@pytest.mark.parametrize(("form", "named"), REFUSED)
def test_what_cannot_be_is_refused_and_named(
    libraries: dict[str, tuple[TokenBytes, GrammarLibrary]], form: dict[str, Any], named: str
) -> None:
    _, library = libraries["byte-level"]
    with pytest.raises(InputError) as caught:
        begin(library, **form)
    assert named in str(caught.value)
    assert len(str(caught.value)) < 1000


def grown(levels: int) -> dict[str, Any]:
    """A schema that means 2^levels alternatives of its leaves, in a few lines."""
    definitions: dict[str, Any] = {"d0": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    for level in range(1, levels):
        below = {"$ref": f"#/$defs/d{level - 1}"}
        fields = {"type": "object", "properties": {f"p{level}": {"type": "string"}}}
        definitions[f"d{level}"] = {"allOf": [{"anyOf": [below, fields]}, {"anyOf": [fields, below]}]}
    return {"$ref": f"#/$defs/d{levels - 1}", "$defs": definitions}


HOSTILE: list[dict[str, Any]] = [
    {"json": grown(24)},
    {"json": {"$ref": "#"}},
    {"json": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}},
    {"json": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}},
    {"json": {"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}},
    {"json": {"type": "string", "minLength": 100000, "maxLength": 200000}},
    {"json": {"type": "array", "minItems": 1000000, "items": {"type": "array", "minItems": 1000000}}},
    {"json": {"enum": [f"value {number}" for number in range(10000)]}},
    {"regex": "((((a{1,100}){1,100}){1,100}){1,100}){1,100}"},
    {"regex": "(a|b)*a" + "(a|b)" * 400},
    {"regex": "(" * 5000 + "a" + ")" * 5000},
    {"grammar": "start: " + "(" * 20000 + '"a"' + ")" * 20000},
    {"grammar": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000},
    {"grammar": 'start: a a\na: b b\nb: c c\nc: d d\nd: e e\ne: "x" | e e | "" '},
    {"choice": ["x" * 60 + str(number) for number in range(4000)]},
]


@pytest.fixture(scope="module")
def grammars(tokenizers: dict[str, Tokenizer]) -> Iterator[Grammars]:
    made = Grammars(lambda: TokenBytes.of(tokenizers["byte-level"], 300))
    yield made
    made.close()


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_hostile_grammar_is_served_or_refused_and_the_next_one_is_compiled(grammars: Grammars, number: int) -> None:
    compiling = grammars.ask(StructuredOutputs(**HOSTILE[number]))
    assert compiling.wait(120)
    found: InputError | None = None
    try:
        matcher = Matcher(compiling.matcher("form"), compiling.ends, compiling.ends)
        assert mask_of(matcher, 300)
    except InputError as error:
        found = error
    assert found is None or (found.param == "form" and 10 < len(str(found)) < 1000)
    after = grammars.ask(StructuredOutputs(regex=f"after {number}"))
    assert after.wait(120)
    assert after.matcher("form").is_accepting() is False


def test_a_grammar_is_compiled_once_whatever_its_field_is_called(grammars: Grammars) -> None:
    first = grammars.ask(StructuredOutputs(regex="once"))
    again = grammars.ask(StructuredOutputs(regex="once", named="guided_regex"))
    assert again is first
    assert grammars.ask(StructuredOutputs(regex="twice")) is not first
    wrong = grammars.ask(StructuredOutputs(regex="(", named="guided_regex"))
    wrong.wait()
    with pytest.raises(InputError) as caught:
        wrong.matcher("response_format")
    assert caught.value.param == "response_format"


class Blocked:
    """Grammars whose thread waits for its vocabulary until it is let go."""

    def __init__(self, vocabulary: Callable[[], TokenBytes]) -> None:
        self.go = threading.Event()

        def wait() -> TokenBytes:
            self.go.wait()
            return vocabulary()

        self.grammars = Grammars(wait)


def test_what_nobody_wants_any_more_is_not_compiled_but_again_when_asked_for(tokenizers: dict[str, Tokenizer]) -> None:
    blocked = Blocked(lambda: TokenBytes.of(tokenizers["byte-level"], 300))
    grammars = blocked.grammars
    try:
        grammars.ask(StructuredOutputs(choice=["first"]))
        left = grammars.ask(StructuredOutputs(choice=["left"]))
        kept = grammars.ask(StructuredOutputs(choice=["kept"]))
        grammars.leave(left)
        blocked.go.set()
        assert kept.wait(60)
        assert left.dropped
        again = grammars.ask(StructuredOutputs(choice=["left"]))
        assert again is not left
        assert again.wait(60)
        assert not again.matcher("form").is_error()
    finally:
        grammars.close()


def test_too_many_grammars_at_once_are_an_overload(tokenizers: dict[str, Tokenizer]) -> None:
    blocked = Blocked(lambda: TokenBytes.of(tokenizers["byte-level"], 300))
    try:
        for number in range(MAX_WAITING):
            blocked.grammars.ask(StructuredOutputs(choice=[str(number)]))
        with pytest.raises(OverloadedError):
            blocked.grammars.ask(StructuredOutputs(choice=["one more"]))
        blocked.grammars.ask(StructuredOutputs(choice=["0"]))
    finally:
        blocked.grammars.close()
        blocked.go.set()


def test_a_vocabulary_without_an_end_is_refused(tmp_path: Path) -> None:
    without = folder_tokenizer(tmp_path, tokenizer={**sentencepiece_bpe(), "added_tokens": []})
    with pytest.raises(InputError, match="ends an answer"):
        TokenBytes.of(without, 300)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({}, "none of them"),
        ({"regex": "a", "choice": ["b"]}, "regex and choice"),
        ({"regex": ""}, "regex"),
        ({"regex": "a" * 300_000}, "limit"),
        ({"choice": []}, "choice"),
        ({"choice": ["a", ""]}, "choice"),
        ({"choice": ["a"] * 5000}, "choice"),
        ({"json": {"a": "\ud800"}}, "json"),
        ({"json": 5}, "int"),
        ({"grammar": "\ud800"}, "Unicode"),
        ({"regex": "a", "any_whitespace": True}, "any_whitespace"),
    ],
)
def test_a_form_that_contradicts_itself_is_refused_when_it_is_made(form: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        StructuredOutputs(**form, named="guided")
    assert caught.value.param == "guided"


def test_a_schema_is_kept_as_text_with_numbers_of_any_size() -> None:
    assert json.loads(str(StructuredOutputs(json={"minimum": 10**40}).json)) == {"minimum": 10**40}
    assert StructuredOutputs(json=True).json == "true"
