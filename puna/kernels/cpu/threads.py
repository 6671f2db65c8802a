"""How many threads this process may really use: its CPU affinity, and the quotas of the control groups it lives in.

A container that is given half a core still sees every core of its host; asking for more threads than the quota only
makes them wait for each other. Every group up to the root may set a quota, in version 1 and in version 2; the least of
them counts. Files that are missing or odd are skipped: not every machine has them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def available_threads(root: Path = Path("/")) -> int:
    """At least 1; never more than the affinity mask or the CPU quota (rounded up) allow. `root` is where /proc and
    /sys are looked for."""
    cpus, quota = _allowed_cpus(), cpu_quota(root)
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota)))


def may_pin(threads: int, root: Path = Path("/")) -> bool:
    """Whether `threads` threads should have a core each: only where they are all this process may use. With fewer the
    system finds them better places, and beneath a quota it has to move them to where there is time left."""
    return threads == _allowed_cpus() and cpu_quota(root) is None


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs that control groups allow this process; None where there is no limit."""
    quotas = [quota for quota in _quotas(root) if quota is not None]
    return min(quotas, default=None)


def _allowed_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float | None]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        hierarchy, controllers, path = [*line.split(":", 2), "", ""][:3]
        group = PurePosixPath(path.lstrip("/"))
        for folder in (group, *group.parents):
            if hierarchy == "0" and not controllers:
                yield _version_2(root / "sys/fs/cgroup" / folder)
            elif "cpu" in controllers.split(","):
                yield _version_1(root / "sys/fs/cgroup/cpu" / folder)


def _version_2(folder: Path) -> float | None:
    try:
        limit, period = (folder / "cpu.max").read_text().split()[:2]
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _version_1(folder: Path) -> float | None:
    try:
        limit_us = int((folder / "cpu.cfs_quota_us").read_text())
        period_us = int((folder / "cpu.cfs_period_us").read_text())
        return limit_us / period_us if limit_us > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
