"""What an answer is made of once it was taken apart: content, reasoning and calls of tools.

The vocabulary between those who read a model's text and those who show it. Plain data; it knows no format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """`index` counts the calls of one answer from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the arguments' JSON text of call `index`."""

    index: int
    text: str


Piece = Content | Reasoning | CallStart | CallArguments


class PieceReader(Protocol):
    """Reads one answer. What it gives depends on the text alone, not on how the text was cut into pieces: joined, the
    texts of each kind and call are the same."""

    def feed(self, text: str) -> list[Piece]: ...

    def end(self) -> list[Piece]:
        """What was held back when the answer ended."""
        ...
