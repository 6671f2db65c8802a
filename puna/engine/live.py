"""What the engine keeps of the requests that are alive.

A request has n samples. Before the prompt is computed they share one stream (one sequence in the scheduler); then each
has its own. Prompt scores are collected here while the prompt is computed in chunks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from puna.engine.matcher import Matcher
from puna.engine.params import EngineRequest, PositionLogprobs, TokenLogprob
from puna.engine.sampling import Recipe
from puna.kernels.batch import StepOutput
from puna.sched.sequence import Sequence

if TYPE_CHECKING:
    from puna.engine.beam_group import BeamGroup


@dataclass(slots=True, eq=False)
class Sample:
    """Sample `index` of a request. `started`: its first update was sent. `matcher`: where it stands in the form that
    its answer has to take, if there is one."""

    request_id: str
    index: int
    recipe: Recipe
    started: bool = False
    done: bool = False
    matcher: Matcher | None = None


class PromptScores:
    """Log-probabilities of the prompt's tokens 1 .. prompt_len - 1, filled as chunks are computed (again, maybe)."""

    def __init__(self, prompt: list[int], num_logprobs: int) -> None:
        self.num_logprobs = num_logprobs
        self.complete = False
        self._prompt = prompt
        self._logprob = np.zeros(len(prompt), dtype=np.float32)
        self._rank = np.zeros(len(prompt), dtype=np.int32)
        self._top_ids = np.full((len(prompt), num_logprobs), -1, dtype=np.int32)
        self._top_logprobs = np.zeros((len(prompt), num_logprobs), dtype=np.float32)

    def fill(self, position: int, output: StepOutput, first: int, count: int) -> None:
        """Rows first .. first + count - 1 of `output` score the tokens at `position` onwards."""
        to, rows, k = slice(position, position + count), slice(first, first + count), self.num_logprobs
        self._logprob[to] = output.logprob[rows]
        self._rank[to] = output.rank[rows]
        self._top_ids[to] = output.top_ids[rows, :k]
        self._top_logprobs[to] = output.top_logprobs[rows, :k]
        self.complete = position + count == len(self._prompt)

    def entries(self) -> list[PositionLogprobs | None]:
        """One entry a prompt token, the first None."""
        columns = zip(
            self._prompt[1:],
            self._logprob[1:].tolist(),
            self._rank[1:].tolist(),
            self._top_ids[1:].tolist(),
            self._top_logprobs[1:].tolist(),
            strict=True,
        )
        return [None, *(position_logprobs(*column) for column in columns)]


def position_logprobs(
    token: int, logprob: float, rank: int, top_ids: list[int], top_logprobs: list[float]
) -> PositionLogprobs:
    top = zip(top_ids, top_logprobs, strict=True)
    best = [TokenLogprob(t, value, r) for r, (t, value) in enumerate(top, 1) if t >= 0]
    return PositionLogprobs(TokenLogprob(token, logprob, rank), best)


@dataclass(slots=True, eq=False)
class Stream:
    """A sequence and the samples that are drawn from it: all n before the fork, one after. Of a search it is one of the
    `beams`, and what stands for a sample only says how to look for candidates.

    `slot` is the runner's row (-1: none), of which `known_len` tokens are written. `begun_s`: when its first step
    began, on the engine's clock.
    """

    sequence: Sequence
    samples: list[Sample]
    scores: PromptScores | None = None
    slot: int = -1
    known_len: int = 0
    begun_s: float | None = None
    beams: BeamGroup | None = None

    @property
    def queue_s(self) -> float:
        """How long it waited for its first step."""
        return 0.0 if self.begun_s is None else max(0.0, self.begun_s - self.sequence.arrival)


@dataclass(slots=True, eq=False)
class LiveRequest:
    """A request and where its samples live now."""

    request: EngineRequest
    streams: list[Stream] = field(default_factory=list)
