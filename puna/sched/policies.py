"""The policies by the names that options give them."""

from __future__ import annotations

from collections.abc import Callable

from puna.sched.fcfs import Fcfs
from puna.sched.policy import Policy
from puna.sched.priority import Priority

POLICIES: dict[str, Callable[[], Policy]] = {"fcfs": Fcfs, "priority": Priority}
