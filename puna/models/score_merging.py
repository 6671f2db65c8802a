"""SentencePiece's byte-pair encoding: of all neighbours that make a token, those with the highest score merge first.

Scores are not ranks: several pairs can make the same token, and then the leftmost merges first, which lists of ranked
pairs cannot say. Text is cut wherever no token has the two characters side by side, which changes no result, and words
are remembered. A word of n characters takes n log n steps. It knows nothing of special tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import compress, pairwise
from operator import add

LONGEST_REMEMBERED = 64  # characters of a word
WORDS_REMEMBERED = 65_536


class ScoreMerging:
    """Thread-safe. `spell_out` gives the tokens of a character that is none itself: its bytes, or the unknown token."""

    def __init__(
        self, ids: Mapping[str, int], scores: Mapping[str, float], spell_out: Callable[[str], list[int]]
    ) -> None:
        self._ids = ids
        self._urgency = {text: -scores[text] for text in ids if len(text) > 1}
        self._neighbours = {text[at : at + 2] for text in self._urgency for at in range(len(text) - 1)}
        self._spell_out = spell_out
        self._remembered = lru_cache(WORDS_REMEMBERED)(self._merge)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in self._words(text):
            ids += self._remembered(word) if len(word) <= LONGEST_REMEMBERED else self._merge(word)
        return ids

    def _words(self, text: str) -> Iterator[str]:
        apart = (pair not in self._neighbours for pair in map(add, text, text[1:]))
        for start, end in pairwise([0, *compress(range(1, len(text)), apart), len(text)]):
            yield text[start:end]

    def _merge(self, word: str) -> tuple[int, ...]:
        """A symbol is known by where it starts: `end[start]` is where it ends (-1 once it is part of another), and
        `before[start]` where the one before it starts. The queue has (urgency, start, middle, end) of neighbours; an
        entry that no longer describes two symbols is passed over."""
        count, urgency = len(word), self._urgency
        end, before = list(range(1, count + 1)), list(range(-1, count))
        queue = [
            (urgent, at, at + 1, at + 2)
            for at in range(count - 1)
            if (urgent := urgency.get(word[at : at + 2])) is not None
        ]
        heapify(queue)
        while queue:
            _, start, middle, stop = heappop(queue)
            if end[start] != middle or end[middle] != stop:
                continue
            end[start], end[middle], before[stop] = stop, -1, start
            if start > 0:
                left = before[start]
                if (urgent := urgency.get(word[left:stop])) is not None:
                    heappush(queue, (urgent, left, start, stop))
            if stop < count:
                right = end[stop]
                if (urgent := urgency.get(word[start:right])) is not None:
                    heappush(queue, (urgent, start, stop, right))
        return tuple(self._tokens(word, end))

    def _tokens(self, word: str, end: list[int]) -> Iterator[int]:
        start = 0
        while start < len(word):
            symbol = word[start : end[start]]
            token = self._ids.get(symbol)
            if token is None:
                yield from self._spell_out(symbol)
            else:
                yield token
            start = end[start]
