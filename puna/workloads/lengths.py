"""How long prompts and answers are: distributions fitted to what was published of two sets of conversations.

ShareGPT-like: prompts of 161 and answers of 338 tokens on average; Alpaca-like: 19 and 58 (PagedAttention, SOSP 2023,
section 6.1). Lengths are log-normal, prompt and answer independent. Of the spread the paper prints only histograms:
that of ShareGPT's prompts is that of a public log of an arena of chats (1.5); the others are such that the batch
sizes and savings that the paper prints for its own system come out near (see docs/generation.md). Knows no text.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from puna.errors import InputError


@dataclass(frozen=True)
class LogNormal:
    """`mean` in tokens; `variation` is the standard deviation over the mean."""

    mean: float
    variation: float

    def __post_init__(self) -> None:
        if not (0 < self.mean < math.inf and 0 <= self.variation < math.inf):
            raise InputError(f"lengths with mean {self.mean} and variation {self.variation}; the mean is above 0")

    def draw(self, dice: random.Random) -> int:
        """One token at least."""
        variance = math.log1p(self.variation**2)
        return max(1, round(dice.lognormvariate(math.log(self.mean) - variance / 2, math.sqrt(variance))))


@dataclass(frozen=True)
class Lengths:
    """Pairs of lengths. What is drawn longer than `longest_prompt` or `longest_answer` is cut to it."""

    name: str
    prompt: LogNormal
    answer: LogNormal
    longest_prompt: int
    longest_answer: int

    @property
    def longest(self) -> int:
        """The context that holds all of them."""
        return self.longest_prompt + self.longest_answer

    def cut(self, longest: int) -> Lengths:
        """The same with prompts and answers of at most `longest` tokens each."""
        return Lengths(self.name, self.prompt, self.answer, longest, longest)

    def draw(self, count: int, dice: random.Random) -> list[tuple[int, int]]:
        """`count` pairs of prompt and answer."""
        return [
            (min(self.prompt.draw(dice), self.longest_prompt), min(self.answer.draw(dice), self.longest_answer))
            for _ in range(count)
        ]


SHAREGPT = Lengths("ShareGPT-like", LogNormal(161, 1.5), LogNormal(338, 1.0), 1024, 1024)
ALPACA = Lengths("Alpaca-like", LogNormal(19, 0.6), LogNormal(58, 1.0), 1024, 1024)
LENGTHS = {"sharegpt": SHAREGPT, "alpaca": ALPACA}
