"""SentencePiece's compiled normalisation: the longest match is replaced, and bytes that are none are named."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.models.charsmap import Charsmap
from tests.models.compiled_charsmap import compiled

RULES = {"a\u0301": "á", "á": "<A>", "ab": "X", "abcd": "Y", "\t": " ", "ﬁ": "fi", "\u200b": "", "é\u0301": "E"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("nothing of it", "nothing of it"),
        ("a\u0301bc", "ábc"),
        ("ab abc abcd abcdab", "X Xc Y YX"),
        ("á\té\u0301é", "<A> Eé"),
        ("ﬁx\u200b!", "fix!"),
        ("aab", "aX"),
    ],
)
def test_the_longest_text_that_has_a_rule_is_replaced(text: str, expected: str) -> None:
    assert Charsmap(compiled(RULES)).normalize(text) == expected


@given(st.text("ab\u0301cdáé\tﬁ\u200b", max_size=30))
def test_it_does_what_trying_every_length_from_the_left_does(text: str) -> None:
    expected, at = "", 0
    while at < len(text):
        rule = max((r for r in RULES if text.startswith(r, at)), key=len, default=text[at])
        expected, at = expected + RULES.get(rule, rule), at + len(rule)
    assert Charsmap(compiled(RULES)).normalize(text) == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 bytes"),
        (struct.pack("<I", 8) + b"abcd", "trie has 8 bytes of the 4"),
        (compiled(RULES)[:-1], "does not end"),
        (compiled({"a": "x"}).replace(b"x\0", b"\xff\0"), "no UTF-8"),
    ],
)
def test_what_is_no_charsmap_is_named(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Charsmap(content)


def test_a_trie_that_stands_for_too_many_texts_is_refused() -> None:
    """Every byte leads back to the first place."""
    units = [0] * 512
    units[0] = 256 << 10
    for letter in range(1, 256):
        child = 256 ^ letter
        units[child] = letter | (child ^ 256) << 10
    with pytest.raises(ValueError, match="more than"):
        Charsmap(struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + b"\0")


@given(st.binary(max_size=200), st.integers(0, 200))
def test_random_bytes_are_read_or_refused(content: bytes, size: int) -> None:
    with contextlib.suppress(ValueError):
        Charsmap(struct.pack("<I", size & ~3) + content).normalize("some text")
