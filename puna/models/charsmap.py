"""The compiled normalisation of SentencePiece's models: texts that become other texts, the longest match first.

Layout: the length of a trie in bytes (uint32), the trie, then all replacements, each ended by a zero byte. The trie is
a double array of uint32 over UTF-8 bytes. From the place p a byte c leads to the unit p ^ c, if that unit's label is c:

    bits 0-7 and 31   label, of the units that are no values         bit 8   a text ends here
    bits 10-30        base, shifted by eight more where bit 9 is set

The next place is that unit's own number ^ base; where a text ends, the unit at the next place holds the replacement's
offset. (The `tokenizers` library reads the same bytes by graphemes, not by the longest match, which leaves some marks
uncomposed.) It knows no white space rules and no tokens.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_LABEL, _VALUE = 0x800000FF, 0x7FFFFFFF
_LARGEST = 1 << 26  # bytes
_MOST_KEYS = 1 << 19  # and beginnings of keys; SentencePiece's own rules have 225,000 keys, of some 270,000 beginnings


class Charsmap:
    """Thread-safe. Raises ValueError where `compiled` is no such thing."""

    def __init__(self, compiled: bytes) -> None:
        self._texts = dict(_entries(compiled))
        longer = {text for text in self._texts if len(text) > 1}
        self._longest = max(map(len, longer), default=1)
        starts = {text[0] for text in longer}
        follows = {character for text in longer for character in text[1:]}
        places = [_one_of(set(self._texts) - longer)]
        if longer:
            places.append(f"{_one_of(starts)}(?={_one_of(follows)})")
        self._place = re.compile("|".join(places))

    def normalize(self, text: str) -> str:
        pieces: list[str] = []
        done = 0
        for found in self._place.finditer(text):
            start = found.start()
            if start < done:
                continue
            for length in range(min(self._longest, len(text) - start), 0, -1):
                replacement = self._texts.get(text[start : start + length])
                if replacement is not None:
                    pieces += (text[done:start], replacement)
                    done = start + length
                    break
        return "".join([*pieces, text[done:]])


def _one_of(characters: set[str]) -> str:
    return f"[{re.escape(''.join(sorted(characters)))}]" if characters else "(?!)"


def _entries(compiled: bytes) -> Iterator[tuple[str, str]]:
    if not 4 <= len(compiled) <= _LARGEST:
        raise ValueError(f"the charsmap has {len(compiled)} bytes; expected 4 to {_LARGEST}")
    (size,) = struct.unpack_from("<I", compiled)
    if size % 4 or not 0 < size <= len(compiled) - 4:
        raise ValueError(f"the charsmap's trie has {size} bytes of the {len(compiled) - 4} there are")
    units, replacements = np.frombuffer(compiled, np.uint32, size // 4, 4), compiled[4 + size :]
    for key, offset in _keys(units):
        end = replacements.find(b"\0", offset)
        if end < 0:
            raise ValueError(f"the charsmap has a replacement at byte {offset}, which does not end")
        try:
            yield key.decode(), replacements[offset:end].decode()
        except UnicodeDecodeError:
            raise ValueError("the charsmap maps bytes that are no UTF-8 text") from None


def _keys(units: npt.NDArray[np.uint32]) -> Iterator[tuple[bytes, int]]:
    """All texts with their replacements' offsets, level by level. Endings are shared, so that a trie can stand for far
    more texts than it has units."""
    labels, bases = units & _LABEL, (units >> 10) << ((units & 0x200) >> 6)
    left = _MOST_KEYS
    places, prefixes = np.array([bases[0]], np.int64), [b""]
    letters = np.arange(1, 256, dtype=np.int64)
    while len(places):
        next_places: list[int] = []
        next_prefixes: list[bytes] = []
        for first in range(0, len(places), 1024):
            children = places[first : first + 1024, None] ^ letters
            inside = children < len(units)
            leads = inside & (labels[np.where(inside, children, 0)] == letters)
            left -= int(leads.sum())
            if left < 0:
                raise ValueError(f"the charsmap's trie has more than {_MOST_KEYS} beginnings of texts")
            for parent, letter in zip(*map(np.ndarray.tolist, np.nonzero(leads)), strict=True):
                child = int(children[parent, letter])
                key, place = prefixes[first + parent] + bytes([letter + 1]), child ^ int(bases[child])
                if units[child] & 0x100:
                    if place >= len(units):
                        raise ValueError("the charsmap's trie leads out of itself")
                    yield key, int(units[place] & _VALUE)
                next_places.append(place)
                next_prefixes.append(key)
        places, prefixes = np.array(next_places, np.int64), next_prefixes
