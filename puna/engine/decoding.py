"""What stays the same while a prepared step is repeated, so that its tokens are delivered as one column.

Read off the samples once: their names, the ids that may end each, and who wants more than a token. Knows samples and
prepared steps; the engine knows when a step is repeated, and delivers.
"""

from __future__ import annotations

from dataclasses import dataclass

from puna.engine.live import Sample, Stream
from puna.engine.news import Roster
from puna.engine.runner import PreparedStep


@dataclass(frozen=True, slots=True, eq=False)
class Decoding:
    """Of the rows of one prepared step; numbers in `with_logprobs` are rows. `held`: rows that a grammar holds, and
    whose they are."""

    prepared: PreparedStep
    roster: Roster
    last_ids: list[frozenset[int]]
    with_logprobs: set[int]
    held: list[tuple[int, Stream, Sample]]

    @classmethod
    def of(cls, prepared: PreparedStep) -> Decoding | None:
        """None where a sample has its first token in this step: that comes with more than a token."""
        samples = [sample for _, sample in prepared.drawn]
        if not all(sample.started for sample in samples):
            return None
        return cls(
            prepared,
            Roster(tuple((sample.request_id, sample.index) for sample in samples)),
            [sample.recipe.last_ids for sample in samples],
            {s for s, sample in enumerate(samples) if sample.recipe.num_logprobs >= 0},
            [(row.number, *prepared.drawn[row.number]) for row in prepared.masked],
        )

    def apart(self, tokens: list[int], whole: list[int]) -> list[int]:
        """Rows that need an update of their own: `whole` ones, those whose token may end them, and `with_logprobs`."""
        last = [s for s, (token, ids) in enumerate(zip(tokens, self.last_ids, strict=True)) if token in ids]
        return sorted(self.with_logprobs.union(whole, last))
