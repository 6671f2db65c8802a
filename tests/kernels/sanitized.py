"""Whether the core under test was built with sanitizers, which slow it down tenfold, and what a run then leaves out.

Tests ask here for the number of their random examples. Under sanitizers a third of them has to do: every path, type and
shape that is a parameter is still reached, and what values come out has been asked of the same examples without.
"""

from __future__ import annotations

import os

SANITIZED = "PUNA_SANITIZED" in os.environ


def examples(count: int) -> int:
    return max(2, count // 3) if SANITIZED else count
