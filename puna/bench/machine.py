"""The machine that was measured, and what else ran on it meanwhile.

Reads /proc. A figure is worth little when another job had half a core or the host of a virtual machine took its share
("steal"), so every report carries this. Knows nothing of models.
"""

from __future__ import annotations

import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec

import puna
from puna.kernels.cpu import available_threads

PROC = Path("/proc")
BUSY_SHARE = 0.02  # of one core: what counts as a busy process
NAMED_PROCESSES = 5


class BusyProcess(msgspec.Struct, frozen=True):
    """Another process that used the processor: its share of one core."""

    pid: int
    name: str
    cores: float


class MachineReport(msgspec.Struct, frozen=True):
    """`load_1m`: runnable processes, averaged over a minute, before and after. Shares are of all cores together:
    `own` is this process and its children, `others` everything else on the machine, `steal` what the host took."""

    date: str
    puna: str
    system: str
    processor: str
    cores: int
    usable_threads: int
    memory_gib: float
    load_1m_before: float
    load_1m_after: float
    wall_s: float
    own_share: float
    others_share: float
    steal_share: float
    busy_processes: list[BusyProcess]

    @property
    def quiet(self) -> bool:
        return self.others_share < 0.05 and self.steal_share < 0.02


class MachineWatch:
    """Looks at the machine when it is made, and again when `report` is called."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        self._load = _load()
        self._total, self._idle, self._steal = _ticks()
        self._processes = _process_ticks()
        self._own = _ended_ticks() + sum(self._processes[pid][1] for pid in _family() & set(self._processes))

    def report(self) -> MachineReport:
        wall = max(1e-9, time.monotonic() - self._started)
        ticks = _ticks()
        total = max(1, ticks[0] - self._total)
        idle, steal = ticks[1] - self._idle, ticks[2] - self._steal
        processes, family = _process_ticks(), _family()
        own = (_ended_ticks() + sum(processes[pid][1] for pid in family & set(processes)) - self._own) / total
        return MachineReport(
            date=self._date,
            puna=puna.__version__,
            system=f"{platform.system()} {platform.release()}",
            processor=_processor(),
            cores=os.cpu_count() or 1,
            usable_threads=available_threads(),
            memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            load_1m_before=self._load,
            load_1m_after=_load(),
            wall_s=round(wall, 1),
            own_share=round(own, 3),
            others_share=round(max(0.0, (total - idle - steal) / total - own), 3),
            steal_share=round(steal / total, 3),
            busy_processes=self._busy(wall, processes, family),
        )

    def _busy(self, wall_s: float, processes: dict[int, tuple[str, int]], family: set[int]) -> list[BusyProcess]:
        found = []
        for pid, (name, ticks) in processes.items():
            spent = ticks - self._processes.get(pid, ("", 0))[1]
            cores = spent / os.sysconf("SC_CLK_TCK") / wall_s
            if pid not in family and cores >= BUSY_SHARE:
                found.append(BusyProcess(pid, name, round(cores, 2)))
        return sorted(found, key=lambda process: -process.cores)[:NAMED_PROCESSES]


def _load() -> float:
    return os.getloadavg()[0]


def _ticks() -> tuple[int, int, int]:
    """Of all cores since the machine started: all ticks, idle ones, stolen ones."""
    try:
        fields = [int(field) for field in (PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return 0, 0, 0
    fields += [0] * (8 - len(fields))
    return sum(fields), fields[3] + fields[4], fields[7]


def _ended_ticks() -> float:
    """Of children that have ended and were waited for."""
    spent = os.times()
    return (spent.children_user + spent.children_system) * os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> tuple[str, list[str]] | None:
    """A process's name, and the fields behind it: its state is the first of them."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None  # it has ended
    return text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 1 :].split()


def _process_ticks() -> dict[int, tuple[str, int]]:
    found = {}
    for pid in _pids():
        if (stat := _stat(pid)) is not None:
            name, fields = stat
            found[pid] = name, int(fields[11]) + int(fields[12])
    return found


def _family() -> set[int]:
    """This process and its descendants that still live."""
    parents = {pid: int(stat[1][1]) for pid in _pids() if (stat := _stat(pid)) is not None}
    family = {os.getpid()}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return family


def _pids() -> list[int]:
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()] if PROC.is_dir() else []


def _processor() -> str:
    try:
        lines = (PROC / "cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    facts = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    named = facts.get("model name", platform.machine())
    return f"{named} (family {facts['cpu family']}, model {facts['model']})" if "cpu family" in facts else named
