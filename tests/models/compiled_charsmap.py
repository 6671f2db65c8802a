"""Writes a charsmap as SentencePiece's models carry it: a double array, in which every beginning has its own block."""

from __future__ import annotations

import struct
from collections.abc import Mapping


def compiled(rules: Mapping[str, str]) -> bytes:
    """The unit of byte c in the block at p is p ^ c; the value of a text is the first unit of the block it ends in."""
    beginnings = dict.fromkeys(text.encode()[:end] for text in rules for end in range(len(text.encode()) + 1))
    place = {beginning: 256 * (number + 1) for number, beginning in enumerate(sorted(beginnings))}
    units = [0] * (256 * (len(place) + 1))
    units[0] = place[b""] << 10
    replacements = b""
    ends = {text.encode(): replacement.encode() for text, replacement in rules.items()}
    for beginning, block in place.items():
        if beginning:
            child = place[beginning[:-1]] ^ beginning[-1]
            units[child] = beginning[-1] | (beginning in ends) << 8 | (child ^ block) << 10
        if beginning in ends:
            units[block] = 1 << 31 | len(replacements)
            replacements += ends[beginning] + b"\0"
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + replacements
