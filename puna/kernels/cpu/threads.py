"""How many threads this process may really use: its CPU affinity, and the quota of its control group.

A container that is given half a core still sees every core of its host; asking for more threads than the quota only
makes them wait for each other.
"""

from __future__ import annotations

import math
import os
from pathlib import Path


def available_threads(root: Path = Path("/sys/fs/cgroup")) -> int:
    """At least 1; never more than the affinity mask or the CPU quota (rounded up) allow."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(root)
    return max(1, min(count, math.ceil(quota)) if quota else count)


def _quota(root: Path) -> float | None:
    """CPUs allowed by cgroup v2 (`cpu.max`) or v1 (`cpu.cfs_quota_us`); None where there is no limit."""
    try:
        limit, period = (root / "cpu.max").read_text().split()[:2]
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limit_us = int((root / "cpu" / "cpu.cfs_quota_us").read_text())
        period_us = int((root / "cpu" / "cpu.cfs_period_us").read_text())
        return limit_us / period_us if limit_us > 0 else None
    except (OSError, ValueError):
        return None
