"""SentencePiece's merging beside the same rule written in the plainest way, and how special tokens are found."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from puna.models.encoders import SpecialTokens
from puna.models.score_merging import ScoreMerging

tokens = st.dictionaries(st.text("ab_", min_size=2, max_size=5), st.integers(-3, 0), max_size=12)


def merger(scores: dict[str, float]) -> ScoreMerging:
    ids = {text: index for index, text in enumerate(["a", "b", *scores])}
    return ScoreMerging(ids, {"a": 0.0, "b": 0.0, **scores}, lambda character: [-ord(character)])


def merged_plainly(text: str, scores: dict[str, float]) -> list[str]:
    symbols = list(text)
    while True:
        pairs = [(-scores[a + b], at) for at, (a, b) in enumerate(pairwise(symbols)) if a + b in scores]
        if not pairs:
            return symbols
        _, at = min(pairs)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


@given(tokens, st.text("ab_", max_size=100))
def test_the_highest_score_merges_first_and_of_equal_ones_the_leftmost(scores: dict[str, float], text: str) -> None:
    ids = {symbol: index for index, symbol in enumerate(["a", "b", *scores])}
    wanted = [ids.get(symbol, -ord(symbol[0])) for symbol in merged_plainly(text, scores)]
    assert merger(scores).encode(text) == wanted


def test_a_word_far_beyond_what_is_remembered_is_merged_from_end_to_end() -> None:
    merging = merger({"a" * length: -float(length) for length in range(2, 17)})
    assert merging.encode("a" * 160_000) == merging.encode("a" * 16) * 10_000


@given(st.sets(st.text("<ab>", min_size=1, max_size=4), max_size=6), st.text("<ab>", max_size=30))
def test_special_tokens_are_found_from_the_left_the_longest_first(names: set[str], text: str) -> None:
    ids = {name: index for index, name in enumerate(sorted(names))}
    found = list(SpecialTokens(ids).cut(text))
    back = {index: name for name, index in ids.items()}
    assert "".join(back[piece] if isinstance(piece, int) else piece for piece in found) == text
    wanted, at = [], 0
    while at < len(text):
        name = max((name for name in names if text.startswith(name, at)), key=len, default="")
        wanted += [ids[name]] if name else []
        at += len(name) or 1
    assert [piece for piece in found if isinstance(piece, int)] == wanted
