"""How much one tenant may ask for: requests and tokens a minute, requests at once, the length of a context.

An allowance fills evenly, holds one minute's worth, and may be overdrawn by tokens that are drawn for answers that were
let in: how long an answer gets is not known before. It knows the clock; it knows nothing of keys or HTTP.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import msgspec

from puna.errors import InputError
from puna.server.errors import RequestError

MAX_LIMIT = 10**12


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a tenant may ask for; 0 is no limit. `context_tokens` is of prompt and answer together."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrency: int = 0
    context_tokens: int = 0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not 0 <= getattr(self, name) <= MAX_LIMIT:
                raise InputError(f"{name} is {getattr(self, name)}; it takes 0 (no limit) to {MAX_LIMIT}", param=name)


class LimitError(RequestError):
    """A tenant asked for more than it may have at this moment."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(
            message, status=429, kind="rate_limit_error", code="rate_limit_exceeded", retry_after_s=retry_after_s
        )


class Allowance:
    """`per_minute` units a minute, of which a minute's worth can be saved up."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._left = float(per_minute)
        self._seen = now

    def left(self, now: float) -> float:
        """Below 0 where more was taken than there was."""
        self._left = min(float(self.per_minute), self._left + (now - self._seen) * self.per_minute / 60)
        self._seen = now
        return self._left

    def take(self, units: float, now: float) -> None:
        self._left = self.left(now) - units

    def wait_s(self, units: float, now: float) -> float:
        """Seconds until so many are there; 0 where they are."""
        return max(0.0, (units - self.left(now)) * 60 / self.per_minute)


class Tenant:
    """One who is served, and what was used. It belongs to one event loop."""

    def __init__(self, name: str, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.running = 0
        self.requests = 0
        self.tokens = 0
        self.refused = 0
        self._clock = clock
        self.set_limits(limits)

    def set_limits(self, limits: Limits) -> None:
        """What was saved up or overdrawn is forgotten only where a limit changes."""
        before = getattr(self, "limits", None)
        self.limits = limits
        now = self._clock()
        if before is None or before.requests_per_minute != limits.requests_per_minute:
            self._requests = Allowance(limits.requests_per_minute, now) if limits.requests_per_minute else None
        if before is None or before.tokens_per_minute != limits.tokens_per_minute:
            self._tokens = Allowance(limits.tokens_per_minute, now) if limits.tokens_per_minute else None

    def enter(self) -> None:
        """A request begins. LimitError where there are too many."""
        most = self.limits.concurrency
        if most and self.running >= most:
            self.refused += 1
            raise LimitError(f"{self.running} requests of yours run already, the limit is {most}; wait for one", 1.0)
        now = self._clock()
        if self._requests is not None:
            if wait_s := self._requests.wait_s(1, now):
                self.refused += 1
                raise LimitError(
                    f"the limit of {self._requests.per_minute} requests a minute is reached; "
                    f"come back in {_seconds(wait_s)} s",
                    wait_s,
                )
            self._requests.take(1, now)
        self.running += 1
        self.requests += 1

    def leave(self) -> None:
        self.running -= 1

    def admit(self, prompt_tokens: int) -> None:
        """Takes a prompt's tokens from the allowance. LimitError where they are not there yet, RequestError where they
        never will be."""
        if self._tokens is not None:
            now, most = self._clock(), self._tokens.per_minute
            if prompt_tokens > most:
                self.refused += 1
                raise RequestError(
                    f"the prompt has {prompt_tokens} tokens, and your limit is {most} a minute; shorten it",
                    code="prompt_above_token_limit",
                    param="prompt",
                )
            if wait_s := self._tokens.wait_s(prompt_tokens, now):
                self.refused += 1
                raise LimitError(
                    f"the limit of {most} tokens a minute is reached; come back in {_seconds(wait_s)} s", wait_s
                )
        self.spend(prompt_tokens)

    def spend(self, tokens: int) -> None:
        """Tokens that were read or drawn; fewer than none give back what was taken for nothing."""
        self.tokens += tokens
        if self._tokens is not None:
            self._tokens.take(tokens, self._clock())

    def context_tokens(self, served: int) -> int:
        """The context that this tenant has, where the model's has `served` tokens."""
        return min(served, self.limits.context_tokens or served)

    def cache_salt(self, own: str) -> str:
        """Prefixes are not shared between tenants: how fast an answer begins would tell what others have asked."""
        return f"{self.name}/{own}"

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What is left, in OpenAI's headers; none where there is no limit."""
        headers: list[tuple[bytes, bytes]] = []
        now = self._clock()
        for what, allowance in (("requests", self._requests), ("tokens", self._tokens)):
            if allowance is not None:
                most = allowance.per_minute
                said = {
                    "limit": str(most),
                    "remaining": str(max(0, math.floor(allowance.left(now)))),
                    "reset": f"{allowance.wait_s(most, now):.3f}s",
                }
                headers += [(f"x-ratelimit-{key}-{what}".encode(), value.encode()) for key, value in said.items()]
        return headers


def _seconds(wait_s: float) -> int:
    return max(1, math.ceil(wait_s))
