"""What a benchmark asks for: so many sequences, so long, drawn so. And the prompts for it.

Prompts are random token ids. They depend on the workload and the number of the repetition, so that no run is answered
from the prefix cache that another one left; within a run, only what `shared_len` says is shared. Knows no engine.
"""

from __future__ import annotations

import random

import msgspec

from puna.engine.params import SamplingParams
from puna.errors import InputError

MAX_SEQUENCES = 4096


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """`sequences` prompts at once, each of `shared_len` tokens that all have in common and `input_len` of its own;
    every answer has exactly `output_len` tokens. Row i draws with seed `seed + i`. Lengths are in tokens."""

    sequences: int = 1
    input_len: int = 128
    output_len: int = 128
    shared_len: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 1

    def __post_init__(self) -> None:
        _whole("sequences", self.sequences, 1, MAX_SEQUENCES)
        _whole("input_len", self.input_len, 1)
        _whole("output_len", self.output_len, 1)
        _whole("shared_len", self.shared_len, 0)

    @property
    def total_len(self) -> int:
        """Tokens of one sequence at its end."""
        return self.shared_len + self.input_len + self.output_len

    def params(self, row: int) -> SamplingParams:
        """How row `row` draws; the end-of-sequence token does not end it."""
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed + row,
            max_tokens=self.output_len,
            ignore_eos=True,
        )

    def prompts(self, repetition: int, vocab_size: int) -> list[list[int]]:
        """Token ids, one list a sequence. Two repetitions share no run of tokens worth speaking of."""
        dice = random.Random(f"{self.seed}/{repetition}/{self.input_len}/{self.output_len}/{self.shared_len}")
        low = min(100, vocab_size // 4)  # special tokens often stand at the beginning
        shared = [dice.randrange(low, vocab_size) for _ in range(self.shared_len)]
        return [
            shared + [dice.randrange(low, vocab_size) for _ in range(self.input_len)] for _ in range(self.sequences)
        ]


def check_fits(workload: Workload, max_model_len: int) -> None:
    """InputError where a sequence would outgrow the context."""
    if workload.total_len > max_model_len:
        raise InputError(
            f"a sequence would have {workload.total_len} tokens ({workload.shared_len + workload.input_len} in, "
            f"{workload.output_len} out), but the context is {max_model_len}; ask for fewer",
            param="input_len",
        )


def _whole(name: str, value: int, low: int, high: int = 1 << 20) -> None:
    if not low <= value <= high:
        raise InputError(f"{name} is {value}; it takes a whole number from {low} to {high}", param=name)
