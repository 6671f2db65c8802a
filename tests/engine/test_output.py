"""Text and stop strings: what a client sees of a sample's tokens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.engine.output import SampleText, TextDelta
from puna.engine.params import PositionLogprobs, SampleUpdate, SamplingParams, TokenLogprob


class Pieces:
    """A detokenizer in which token i is the i-th piece."""

    def __init__(self, pieces: list[str], tail: str = "") -> None:
        self._pieces = pieces
        self._tail = tail

    def push(self, token_id: int) -> str:
        return self._pieces[token_id]

    def flush(self) -> str:
        return self._tail


def update(*tokens: int, reason: str | None = None, stop_id: int | None = None) -> SampleUpdate:
    return SampleUpdate(
        request_id="r",
        index=0,
        token_ids=list(tokens),
        finish_reason=reason,
        stop_token_id=stop_id,  # type: ignore[arg-type]
    )


def stream(pieces: list[str], *, tail: str = "", **params: object) -> tuple[SampleText, list[TextDelta]]:
    """All pieces, one a token, then the end by length; stops where the sample does."""
    text = SampleText(Pieces(pieces, tail), SamplingParams(max_tokens=None, **params))  # type: ignore[arg-type]
    deltas = []
    for i in range(len(pieces)):
        deltas.append(text.push(update(i, reason="length" if i == len(pieces) - 1 else None)))
        if deltas[-1].finish_reason:
            break
    return text, deltas


def splits(text: str) -> list[list[str]]:
    """Every way to cut `text` into up to three pieces."""
    return [[text[:i], text[i:j], text[j:]] for i in range(len(text) + 1) for j in range(i, len(text) + 1)]


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_split_at_every_position_is_not_leaked(include: bool) -> None:
    for pieces in splits("one STOP two"):
        text, deltas = stream(pieces, stop=["STOP"], include_stop_str_in_output=include)
        assert text.text == "".join(delta.text for delta in deltas) == ("one STOP" if include else "one ")
        assert (text.finish_reason, text.stop_reason) == ("stop", "STOP")


def test_text_that_only_began_like_a_stop_string_is_given_out() -> None:
    for pieces in splits("one STO two STO"):
        text, deltas = stream(pieces, stop=["STOP"])
        assert "".join(delta.text for delta in deltas) == "one STO two STO"
        assert text.finish_reason == "length"


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    _, deltas = stream(["ab", "x", "yz", "x", "q", "."], stop=["xyzw"])
    assert [delta.text for delta in deltas] == ["ab", "", "", "xyz", "xq", "."]


def test_the_stop_string_that_is_completed_first_wins() -> None:
    text, _ = stream(["abcd"], stop=["bcd", "bc"])
    assert (text.text, text.stop_reason) == ("a", "bc")


def test_of_those_completed_by_the_same_character_the_first_in_the_list_wins() -> None:
    assert stream(["abcd"], stop=["bc", "abc"])[0].text == "a"
    assert stream(["abcd"], stop=["abc", "bc"])[0].text == ""


def test_tokens_behind_the_completing_one_are_dropped_and_the_engine_is_told() -> None:
    text = SampleText(Pieces(["a", "b!", "c", "d"]), SamplingParams(stop="!", logprobs=0))
    entries = [PositionLogprobs(TokenLogprob(i, -1.0 - i, 1), []) for i in range(4)]
    delta = text.push(SampleUpdate(request_id="r", index=0, token_ids=[0, 1, 2, 3], logprobs=entries))
    assert (delta.text, delta.token_ids, delta.logprobs, delta.abort) == ("ab", [0, 1], entries[:2], True)
    assert text.cumulative_logprob == pytest.approx(-3.0)
    assert text.push(update(3)) == TextDelta("", [], finish_reason="stop", stop_reason="!")
    assert text.token_ids == [0, 1]


def test_where_the_engine_ended_the_sample_too_it_need_not_be_told() -> None:
    text = SampleText(Pieces(["a", "b!"]), SamplingParams(stop="!"))
    delta = text.push(update(0, 1, reason="length"))
    assert (delta.finish_reason, delta.stop_reason, delta.abort) == ("stop", "!", False)


def test_nothing_that_is_completed_before_min_tokens_stops() -> None:
    text, _ = stream(["a!", "b!", "c", "d!", "e"], stop=["!"], min_tokens=3)
    assert text.text == "a!b!cd"
    assert len(text.token_ids) == 4


def test_a_stop_string_that_began_before_min_tokens_may_be_completed_after() -> None:
    assert stream(["ab", "c", "d"], stop=["bc"], min_tokens=1)[0].text == "a"


def test_the_token_that_ended_a_sample_has_no_text() -> None:
    text = SampleText(Pieces(["a", "<end>"]), SamplingParams())
    delta = text.push(update(0, 1, reason="stop", stop_id=1))
    assert (delta.text, delta.token_ids, delta.stop_reason) == ("a", [0, 1], 1)
    shown = SampleText(Pieces(["a", "<end>"]), SamplingParams(include_stop_str_in_output=True))
    assert shown.push(update(0, 1, reason="stop", stop_id=1)).text == "a<end>"


def test_held_text_and_half_characters_come_out_at_the_end() -> None:
    text, deltas = stream(["a", "ST"], tail="\ufffd", stop=["STOP"])
    assert [delta.text for delta in deltas] == ["a", "ST\ufffd"]
    assert text.text == "aST\ufffd"


def test_a_resumed_sample_goes_on_as_if_it_had_not_stopped() -> None:
    pieces = ["one S", "TO", "P two"]
    whole, _ = stream(pieces, stop=["STOP"])
    for done in range(3):
        text = SampleText(Pieces(pieces), SamplingParams(stop=["STOP"]))
        text.resume(range(done))
        for i in range(done, 3):
            text.push(update(i))
        assert (text.text, text.token_ids) == (whole.text, whole.token_ids)


ALPHABET = st.text(alphabet="aab!é", max_size=4)


@settings(max_examples=400, deadline=None)
@given(
    pieces=st.lists(ALPHABET, min_size=1, max_size=12),
    stops=st.lists(ALPHABET.filter(bool), max_size=3),
    include=st.booleans(),
    min_tokens=st.integers(0, 5),
)
def test_any_text_is_cut_where_looking_at_all_of_it_would_cut(
    pieces: list[str], stops: list[str], include: bool, min_tokens: int
) -> None:
    text, deltas = stream(pieces, stop=stops, include_stop_str_in_output=include, min_tokens=min_tokens)
    whole, unchecked = "".join(pieces), len("".join(pieces[:min_tokens]))
    ends = [
        (end, order)
        for order, stop in enumerate(stops)
        for end in range(unchecked + 1, len(whole) + 1)
        if whole[:end].endswith(stop)
    ]
    assert "".join(delta.text for delta in deltas) == text.text
    if not ends:
        assert (text.text, text.finish_reason, len(text.token_ids)) == (whole, "length", len(pieces))
        return
    end, order = min(ends)
    assert text.text == whole[: end if include else end - len(stops[order])]
    assert text.stop_reason == stops[order]
    kept = next(n for n in range(1, len(pieces) + 1) if len("".join(pieces[:n])) >= end)
    assert len(text.token_ids) == kept
