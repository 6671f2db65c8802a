"""The checks of `puna doctor`: each looks at one thing and says what it found and what to do.

A check never raises: what it cannot find out is a finding. It knows the machine and Puna's parts, not how to print.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["ok", "warn", "fail"]

MIN_FREE_BYTES = 1 << 30
MIN_DISK_BYTES = 1 << 30
SELF_TEST_TOLERANCE = 1e-3
CPU_FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "avx_vnni", "asimd")


@dataclass(frozen=True)
class Check:
    """One line of the report. `remedy` is empty where there is nothing to do."""

    name: str
    state: State
    found: str
    remedy: str = ""


def diagnose() -> list[Check]:
    return [_guarded(check) for check in (python, cpu, native_core, memory, disk, models, self_test)]


def _guarded(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:
        return Check(check.__name__.replace("_", "-"), "fail", f"{type(error).__name__}: {error}", "report this")


def python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"
    if platform.system() != "Linux":
        return Check("python", "warn", found, "Puna is tested on Linux")
    return Check("python", "ok", found)


def cpu() -> Check:
    flags = _cpu_flags()
    known = [name for name in CPU_FEATURES if name in flags]
    found = f"{_usable_cores()} cores; {', '.join(known) or 'no vector extension that Puna uses'}"
    if known:
        return Check("cpu", "ok", found)
    return Check("cpu", "warn", found, "the portable kernels will run, slowly")


def native_core() -> Check:
    try:
        from puna.kernels.cpu import available_threads, paths
    except ImportError as error:
        return Check("native core", "fail", str(error), "`--backend reference` works without it, slowly")
    chosen, *others = paths()
    rest = f" (also: {', '.join(others)})" if others else ""
    return Check("native core", "ok", f"instruction path {chosen}{rest}, {available_threads()} threads")


def memory() -> Check:
    from puna.engine.limits import memory_limits
    from puna.engine.memory import format_bytes

    limits = memory_limits()
    if not limits:
        return Check("memory", "warn", "no limit could be read", "set --kv-gib yourself")
    found = "; ".join(f"{format_bytes(x.free_bytes)} free of {format_bytes(x.total_bytes)} ({x.name})" for x in limits)
    if limits[0].free_bytes < MIN_FREE_BYTES:
        return Check("memory", "warn", found, "close programs, or raise the limit: small models only")
    return Check("memory", "ok", found)


def disk() -> Check:
    from puna.engine.memory import format_bytes
    from puna.models.store import models_home

    home = models_home()
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    found = f"{format_bytes(free)} free for {home}"
    if free < MIN_DISK_BYTES:
        return Check("disk", "warn", found, "make room, or point PUNA_HOME to another disk")
    return Check("disk", "ok", found)


def models() -> Check:
    from puna.engine.memory import format_bytes
    from puna.models.names import list_models

    found = list_models()
    if not found:
        return Check("models", "warn", "none on this machine yet", "puna pull smollm2 (94 MiB)")
    listed = ", ".join(f"{min((m.source, *m.names), key=len)} ({format_bytes(m.size)})" for m in found)
    return Check("models", "ok", listed)


def self_test() -> Check:
    """Runs a small program with random weights natively and in NumPy, and compares the logits."""
    from puna.cli.self_test import largest_difference

    try:
        difference = largest_difference()
    except ImportError:
        return Check("self-test", "warn", "not run: there is no native core", "see the native core above")
    found = f"native and NumPy logits differ by {difference:.1e} at most"
    if not difference <= SELF_TEST_TOLERANCE:
        return Check("self-test", "fail", found, "the native core computes wrongly here; report this machine's CPU")
    return Check("self-test", "ok", found)


def _cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return set()
    for line in info.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
