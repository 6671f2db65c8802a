"""What a step brought, as the engine hands it on: one column of tokens, and updates for those with more to tell.

While everybody decodes, a step's news is a list of whole numbers; who they belong to, the roster, is said once and
holds until somebody comes or goes. Whoever wants objects iterates. Knows nothing of how tokens are drawn or sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from puna.engine.params import SampleUpdate
from puna.errors import PunaError


@dataclass(frozen=True, slots=True, eq=False)
class Roster:
    """Whose tokens a column holds: (request id, index of the sample). The same object for as long as they stay."""

    names: tuple[tuple[str, int], ...]


class StepNews(msgspec.Struct, frozen=True):
    """`tokens[i]` is for sample i of `roster`, which lives on or has an update beside; where it is below 0, it has an
    update instead. `refused`: requests that waited for a grammar and cannot be served, and why."""

    updates: list[SampleUpdate]
    roster: Roster | None = None
    tokens: list[int] | None = None
    refused: tuple[tuple[str, PunaError], ...] = ()

    def __iter__(self) -> Iterator[SampleUpdate]:
        """All news as updates."""
        if self.roster is not None and self.tokens is not None:
            for (request_id, index), token in zip(self.roster.names, self.tokens, strict=True):
                if token >= 0:
                    yield SampleUpdate(request_id=request_id, index=index, token_ids=[token])
        yield from self.updates
