"""How long a client wants to wait: `deadline_s` in the body, or a header for clients that cannot add fields.

After it an answer ends with what is there; one that has nothing yet becomes an error. It knows requests and the clock;
who cuts the answer is deltas.py.
"""

from __future__ import annotations

import math
import time

from starlette.requests import Request

from puna.errors import InputError

HEADER = "puna-deadline-s"
MAX_DEADLINE_S = 86400.0


def deadline_of(request: Request, wanted_s: float | None) -> float | None:
    """The moment (time.monotonic) after which nobody waits for the answer; of two that are given the earlier one."""
    given = [] if wanted_s is None else [_checked(wanted_s, "deadline_s")]
    header = request.headers.get(HEADER)
    if header is not None:
        try:
            given.append(_checked(float(header), HEADER))
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"the header {HEADER} is {header[:40]!r}; it takes seconds", param=HEADER) from None
    return time.monotonic() + min(given) if given else None


def _checked(seconds: float, name: str) -> float:
    if not (math.isfinite(seconds) and 0 < seconds <= MAX_DEADLINE_S):
        raise InputError(f"{name} is {seconds:g}; allowed: above 0 and up to {MAX_DEADLINE_S:g} seconds", param=name)
    return seconds
