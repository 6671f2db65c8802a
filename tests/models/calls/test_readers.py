"""Readers of calls: every sample, whole and cut everywhere, gives the same content and calls, and nothing is lost."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.models.calls.formats import FORMATS
from puna.models.calls.pieces import CallArguments, CallStart, Content, Piece, PieceReader, Reasoning
from puna.models.calls.reasoning import KNOWN, ReasoningReader, ReasoningTokens
from tests.models.calls.samples import NAMES, SAMPLES, Sample

Said = tuple[str, str, list[tuple[str, str]]]


def joined(pieces: list[Piece]) -> Said:
    """Reasoning, content and calls. Calls are numbered in order, and begin before their arguments come."""
    reasoning, content = "", ""
    calls: list[tuple[str, str]] = []
    for piece in pieces:
        match piece:
            case Content():
                content += piece.text
            case Reasoning():
                reasoning += piece.text
            case CallStart():
                assert piece.index == len(calls)
                calls.append((piece.name, ""))
            case CallArguments():
                assert piece.index == len(calls) - 1
                name, arguments = calls[-1]
                calls[-1] = (name, arguments + piece.text)
    return reasoning, content, calls


def read(reader: PieceReader, texts: list[str]) -> Said:
    pieces: list[Piece] = []
    for text in texts:
        pieces += reader.feed(text)
    return joined(pieces + reader.end())


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({place for place in places if 0 < place < len(text)})
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]


@pytest.mark.parametrize("sample", SAMPLES, ids=[f"{sample[0]}-{number}" for number, sample in enumerate(SAMPLES)])
def test_a_sample_is_read_the_same_however_it_is_cut(sample: Sample) -> None:
    kind, text, content, calls = sample
    for bound in ((), NAMES):
        wanted = read(FORMATS[kind].make_reader(NAMES, bound), [text])
        if not bound:
            assert wanted == ("", content, calls)
        assert read(FORMATS[kind].make_reader(NAMES, bound), list(text)) == wanted
        for place in range(1, len(text)):
            assert read(FORMATS[kind].make_reader(NAMES, bound), [text[:place], text[place:]]) == wanted, place


def test_the_arguments_of_a_bound_call_come_as_they_are_written() -> None:
    for kind, text in (
        ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": "x'),
        ("mistral", '[TOOL_CALLS]f[ARGS]{"a": "x'),
        ("llama", '{"name": "f", "parameters": {"a": "x'),
    ):
        reader = FORMATS[kind].make_reader(NAMES, NAMES)
        assert joined(reader.feed(text)) == ("", "", [("f", '{"a": "x')])
        assert reader.end() == []


def test_a_call_without_the_mark_by_which_a_grammar_holds_it_is_bound_by_nothing() -> None:
    text = '{"name": "f", "arguments": {"a": oh'
    assert read(FORMATS["hermes"].make_reader(NAMES, NAMES), [text]) == ("", text, [])


def test_a_call_that_nothing_binds_is_kept_until_it_is_whole() -> None:
    reader = FORMATS["hermes"].make_reader(NAMES, ())
    assert reader.feed('Look: <tool_call>{"name": "f", "arguments": {"a": 1}') == [Content("Look:")]
    assert joined(reader.feed("}")) == ("", "", [("f", '{"a": 1}')])


ALPHABET = st.sampled_from(
    [
        *(
            "<tool_call>",
            "</tool_call>",
            "[TOOL_CALLS]",
            "[ARGS]",
            "<|python_tag|>",
            "```json",
            "```",
            "<think>",
            "</think>",
        ),
        *(
            '{"name": "f", "arguments": ',
            '{"name": "f", "parameters": ',
            '{"name": "nobody"}',
            '"a": ',
            "{",
            "}",
            "[",
            "]",
        ),
        *(
            '{"a": 1}',
            '{"a": "\\"',
            "[f(a=1)]",
            "[f(",
            "f",
            ")",
            "a=",
            "'",
            '"',
            ",",
            ";",
            ":",
            " ",
            "\n",
            "1",
            "-",
            "\\",
        ),
        *("true", "é", "<", "</", "null", "x"),
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.lists(ALPHABET, max_size=14), st.lists(st.integers(0, 150)), st.booleans())
def test_any_text_is_read_the_same_however_it_is_cut(
    kind: str, parts: list[str], places: list[int], is_bound: bool
) -> None:
    text = "".join(parts)
    bound = NAMES if is_bound else ()

    def reader() -> PieceReader:
        return ReasoningReader(KNOWN[0], FORMATS[kind].make_reader(NAMES, bound))

    wanted = read(reader(), [text])
    assert read(reader(), cut(text, places)) == wanted
    assert read(reader(), list(text)) == wanted
    if not is_bound:
        for _, arguments in wanted[2]:
            assert isinstance(json.loads(arguments), dict)
    if not wanted[2] and "<think>" not in text:
        assert wanted[1] == text


@pytest.mark.parametrize(
    ("text", "is_open", "reasoning", "content"),
    [
        ("<think>\nhm\n\nso\n</think>\n\nYes.", False, "hm\n\nso", "Yes."),
        ("hm\n</think>\n\nYes.\n", True, "hm", "Yes.\n"),
        ("<think>\n\n</think>\n\nYes.", False, "", "Yes."),
        ("<think>cut off </thin", False, "cut off </thin", ""),
        ("No <think>here</think>", False, "", "No <think>here</think>"),
        ("  <think>a</think><think>b</think>", False, "a", "<think>b</think>"),
        ("<thin", False, "", "<thin"),
    ],
)
def test_reasoning_is_split_off(text: str, is_open: bool, reasoning: str, content: str) -> None:
    for texts in ([text], list(text), *(cut(text, [place]) for place in range(1, len(text)))):
        assert read(ReasoningReader(KNOWN[0], is_open=is_open), texts) == (reasoning, content, [])


@pytest.mark.parametrize(
    ("tokens", "is_open", "count"),
    [
        (["<think>", "a", "b", "</think>", "c"], False, 4),
        (["a", "b</", "think", ">x", "c"], True, 4),
        (["\n", "<thi", "nk>", "a"], False, 4),
        (["no", "<think>", "a", "</think>"], False, 0),
    ],
)
def test_tokens_of_reasoning_are_counted_however_they_arrive(tokens: list[str], is_open: bool, count: int) -> None:
    for size in (1, 2, len(tokens)):
        counter = ReasoningTokens(KNOWN[0], tokens.__getitem__, is_open=is_open)
        for first in range(0, len(tokens), size):
            counter.add(range(first, min(len(tokens), first + size)))
        assert counter.count == count
