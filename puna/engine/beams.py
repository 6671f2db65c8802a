"""Beam search as bookkeeping: which continuations go on, which are answers, and when no better one can come.

A beam is worth the sum of its log-probabilities, an answer that sum divided by (tokens it has, its end included) to
the power of the length penalty. Rules and their names are those of transformers' `generate`: of every step the best
(1 + end ids) x width continuations are looked at, so that those which end do not starve those which go on, and of the
ones that end only the best `width` become answers. Knows tokens and numbers; no sequences, blocks or models.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True, slots=True)
class BeamRules:
    """What was asked for.

    width           beams that go on, and answers that are kept
    max_tokens      at which a beam ends; min_tokens: up to which no end id is taken
    early_stopping  True: as soon as there are `width` answers. False: when the best beam, were it to end now, would not
                    be among them. "never": when it could not get among them at any length up to max_tokens
    """

    width: int
    max_tokens: int
    end_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False

    @property
    def looked_at(self) -> int:
        """Continuations of a step that are looked at."""
        return max(2, 1 + len(self.end_ids)) * self.width

    @property
    def candidates(self) -> int:
        """Tokens that have to be known behind each beam: all that is looked at may follow one, and end ids that may not
        be taken yet may stand before them."""
        return self.looked_at + (len(self.end_ids) if self.min_tokens else 0)


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The likeliest tokens behind one beam, best first, with their log-probabilities."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]


@dataclass(frozen=True, slots=True, eq=False)
class Beam:
    """A token, the beam that it follows, and the candidates that it was one of (its rank, from 1). The first beam is
    the prompt: it has no tokens."""

    before: Beam | None = None
    token: int = -1
    logprob: float = 0.0
    rank: int = 0
    among: Candidates | None = None
    length: int = 0
    total: float = 0.0

    def follow(self, rank: int, among: Candidates) -> Beam:
        """With the token of that rank, from 1, behind it."""
        logprob = among.logprobs[rank - 1]
        return Beam(self, among.token_ids[rank - 1], logprob, rank, among, self.length + 1, self.total + logprob)

    def chain(self) -> list[Beam]:
        """One a token, from the first."""
        links, link = [], self
        while link.before is not None:
            links.append(link)
            link = link.before
        return links[::-1]


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A beam that has ended, by an end id or at max_tokens."""

    beam: Beam
    score: float
    by_end_id: bool


@dataclass(slots=True, eq=False)
class BeamSearch:
    """`beams` go on, best first; `answers` are the best that have ended, best first. `done`: nothing goes on; then they
    are `width`, if the model has `width` tokens that end nothing."""

    rules: BeamRules
    beams: list[Beam] = field(default_factory=lambda: [Beam()])
    answers: list[Answer] = field(default_factory=list)
    done: bool = False

    def advance(self, candidates: Sequence[Candidates]) -> list[int]:
        """One token on. `candidates[i]` are those of `beams[i]`, `rules.candidates` of them or as many as there are
        tokens. Returns which of the beams before each of the new ones follows; nothing where the search is done."""
        rules = self.rules
        length = self.beams[0].length + 1
        barred = rules.end_ids if length <= rules.min_tokens else frozenset()
        reached = [
            (-(beam.total + logprob), i, rank)
            for i, (beam, those) in enumerate(zip(self.beams, candidates, strict=True))
            for rank, (token, logprob) in enumerate(zip(those.token_ids, those.logprobs, strict=True), 1)
            if token not in barred
        ]
        reached.sort()
        parents: list[int] = []
        beams: list[Beam] = []
        ended: list[Answer] = []
        for place, (_, i, rank) in enumerate(itertools.islice(reached, rules.looked_at)):
            token = candidates[i].token_ids[rank - 1]
            by_end_id = token in rules.end_ids
            if by_end_id or length >= rules.max_tokens:
                if place < rules.width:
                    beam = self.beams[i].follow(rank, candidates[i])
                    ended.append(Answer(beam, self._score(beam.total, length), by_end_id))
            elif len(beams) < rules.width:
                beams.append(self.beams[i].follow(rank, candidates[i]))
                parents.append(i)
        if not (rules.early_stopping is True and self._is_full):
            self.answers = sorted([*self.answers, *ended], key=lambda answer: -answer.score)[: rules.width]
        self.done = not beams or (self._is_full and not self._may_improve(beams[0], length))
        if self.done:
            return []
        self.beams = beams
        return parents

    @property
    def _is_full(self) -> bool:
        return len(self.answers) == self.rules.width

    def _may_improve(self, best: Beam, length: int) -> bool:
        """Whether the best beam may still get among the answers, which are `width` already."""
        rules = self.rules
        if rules.early_stopping is True:
            return False
        longest = rules.early_stopping == "never" and rules.length_penalty > 0
        return self._score(best.total, rules.max_tokens if longest else length) > self.answers[-1].score

    def _score(self, total: float, length: int) -> float:
        return float(total / length**self.rules.length_penalty)
