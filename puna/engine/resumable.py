"""A request that outlives engines: what its client has by now, and the request that fetches the rest.

It knows tokens and how often an engine died under the request; it knows no process.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from puna.engine.params import EngineRequest, SampleUpdate


@dataclass(eq=False)
class Resumable:
    """`deaths`: engines in a row that died with this request in them. `in_vain`: of those, the last ones that it was
    alone in and that brought it not one token; `alike`: of those, the last ones that died at the same `place` of their
    work. `reached`: how far its beams came in any engine. `waits`: for an engine, or for its turn. `culprit`: why it is
    not tried again."""

    request: EngineRequest
    delivered: list[list[int]] = field(default_factory=list)
    done: set[int] = field(default_factory=set)
    admitted: bool = False
    deaths: int = 0
    in_vain: int = 0
    alike: int = 0
    place: tuple[int, int] | None = None
    reached: int = 0
    waits: bool = False
    culprit: str | None = None

    def __post_init__(self) -> None:
        self.delivered = [list(tokens) for tokens in self.request.delivered]
        self.delivered += [[] for _ in range(self.request.params.samples - len(self.delivered))]
        self.done = set(self.request.done)

    @property
    def finished(self) -> bool:
        return len(self.done) == self.request.params.samples

    def take(self, update: SampleUpdate) -> bool:
        """Notes what goes to the client. False: nothing is new to it."""
        if update.index in self.done:
            return False
        self.delivered[update.index] += update.token_ids
        if update.finish_reason is not None:
            self.done.add(update.index)
        return True

    def gained(self, received: int) -> int:
        """Of what an engine brought for it, tokens that none had brought before. Beams begin anew in every engine and
        come by the same places again, so what kills there has to be told from what gets on."""
        return max(0, received - self.reached) if self.request.params.beam_width else received

    def rest(self) -> EngineRequest:
        """The request for what is missing."""
        if not self.admitted:
            return self.request
        return msgspec.structs.replace(
            self.request,
            delivered=[list(tokens) for tokens in self.delivered] if any(self.delivered) else [],
            done=sorted(self.done),
            admitted=True,
        )
