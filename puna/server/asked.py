"""What is known of one HTTP request while it is answered, for those who keep account of it: its log line and its span.

Whoever learns something notes it in `ASKED`, which holds for the task that answers and those that it starts. Nothing
that decides an answer reads it.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from puna.engine.meter import RequestWatch

NO_STATUS = 499  # the client left before there was one


@dataclass(eq=False)
class Asked:
    """`request_id`: the client's own, or ours. `watches`: one a prompt, in the order in which they were begun."""

    request_id: str
    method: str
    path: str
    since_s: float = field(default_factory=time.monotonic)
    status: int = 0
    tenant: str | None = None
    watches: list[RequestWatch] = field(default_factory=list)

    @property
    def prompt_tokens(self) -> int:
        return sum(watch.prompt_tokens for watch in self.watches)

    @property
    def generated_tokens(self) -> int:
        return sum(watch.generated_tokens for watch in self.watches)

    @property
    def cached_tokens(self) -> int:
        return sum(watch.cached_tokens for watch in self.watches)

    @property
    def first_token_s(self) -> float | None:
        return min((watch.first_token_s for watch in self.watches if watch.first_token_s is not None), default=None)

    @property
    def finish_reasons(self) -> list[str]:
        """One a choice, in the order of choices; "" where one has not ended."""
        return [answer.finish_reason or "" for watch in self.watches for answer in watch.answers]


ASKED: ContextVar[Asked | None] = ContextVar("asked", default=None)
