"""How much memory this process may still use, and who says so.

Reads the control groups it lives in (version 1 and 2, the whole chain up to the root), the address-space limit and
what the kernel calls available. Knows nothing of models. Files that are missing or odd are skipped: not every machine
has them.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_NO_LIMIT = 1 << 60  # version 1 groups without a limit report a number near 2^63


@dataclass(frozen=True)
class MemoryLimit:
    """One bound on memory: its name as a person knows it, its size and what is left of it, in bytes."""

    name: str
    total_bytes: int
    free_bytes: int


def memory_limits(root: Path = Path("/")) -> list[MemoryLimit]:
    """All bounds that apply, the tightest first. `root` is where /proc and /sys are looked for."""
    found = [*_meminfo(root), *_control_groups(root), *_address_space(root)]
    return sorted(found, key=lambda limit: limit.free_bytes)


def _meminfo(root: Path) -> Iterator[MemoryLimit]:
    fields = _fields(root / "proc/meminfo")
    if "MemAvailable:" in fields and "MemTotal:" in fields:
        yield MemoryLimit("memory of the machine", fields["MemTotal:"] * 1024, fields["MemAvailable:"] * 1024)
    elif root == Path("/") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
        yield MemoryLimit("memory of the machine", total, free)


def _control_groups(root: Path) -> Iterator[MemoryLimit]:
    for line in _text(root / "proc/self/cgroup").splitlines():
        hierarchy, controllers, path = [*line.split(":", 2), "", ""][:3]
        if hierarchy == "0" and not controllers:
            base, files = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for folder in (group, *group.parents):
            limit = _control_group(base / folder, *files)
            if limit is not None:
                yield limit


def _control_group(folder: Path, limit_file: str, usage_file: str, cache_field: str) -> MemoryLimit | None:
    total, used = _number(folder / limit_file), _number(folder / usage_file)
    if total is None or used is None or total >= _NO_LIMIT:
        return None
    reclaimable = _fields(folder / "memory.stat").get(cache_field, 0)
    free = max(0, total - max(0, used - reclaimable))
    return MemoryLimit(f"control group {folder.name or '/'} ({limit_file})", total, min(free, total))


def _address_space(root: Path) -> Iterator[MemoryLimit]:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        used = _fields(root / "proc/self/status").get("VmSize:", 0) * 1024
        yield MemoryLimit("address space (ulimit -v)", soft, max(0, soft - used))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _fields(path: Path) -> dict[str, int]:
    """First number of every line, by the word before it."""
    rows = (line.split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) >= 2 and row[1].isdigit()}
