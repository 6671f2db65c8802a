"""One workload under several policies, each from an empty scheduler: what `puna simulate` runs.

Knows policies and memory by their names; how figures are shown is the caller's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from puna.errors import InputError
from puna.plan.figures import SimulationFigures, figures_of
from puna.plan.reserved_tables import RESERVATIONS, ReservedTables
from puna.plan.service import Difference, difference, of_outcomes
from puna.plan.simulated import Outcome, SimulatedRequest
from puna.plan.simulator import Moment, Simulator
from puna.plan.step_time import StepTime
from puna.sched.config import SchedulerConfig
from puna.sched.policies import POLICIES
from puna.sched.scheduler import Scheduler

MEMORIES = ("paged", *RESERVATIONS)


class PolicyRun(msgspec.Struct, frozen=True, kw_only=True):
    """`clients`: figures by client, most requests first, where the trace names any. `batch`: sequences that run,
    `used`: the share of the pool that somebody holds, both means over steps; `longest_queue`: of those that wait;
    `difference`: how far clients' service lies apart, where there are several and the trace is long enough."""

    policy: str
    figures: SimulationFigures
    clients: dict[str, SimulationFigures]
    steps: int
    batch: float
    used: float
    longest_queue: int
    difference: Difference | None


class _Crowd:
    def __init__(self) -> None:
        self.steps = self.running = self.used = self.total = self.longest_queue = 0

    def on_step(self, moment: Moment) -> None:
        stats = moment.scheduler.stats()
        self.steps += 1
        self.running += stats.running
        self.used += stats.blocks_used
        self.total += stats.blocks_total
        self.longest_queue = max(self.longest_queue, stats.waiting + stats.swapped)


def check_policies(names: Sequence[str]) -> None:
    """InputError where one is unknown, or named twice."""
    for name in names:
        if name not in POLICIES:
            raise InputError(f"there is no policy {name!r}; there are {', '.join(POLICIES)}", param="policy")
        if names.count(name) > 1:
            raise InputError(f"the policy {name!r} is named twice", param="policy")


def simulate(
    requests: Sequence[SimulatedRequest],
    policy: str,
    config: SchedulerConfig,
    step_time: StepTime,
    memory: str = "paged",
) -> tuple[PolicyRun, list[Outcome]]:
    """`memory`: "paged", or what is reserved at once ("max", "pow2", "oracle"). InputError where the pool is too small
    for that."""
    check_policies([policy])
    tables = None if memory == "paged" else ReservedTables(config, RESERVATIONS[memory])
    crowd = _Crowd()
    simulator = Simulator(Scheduler(config, POLICIES[policy](), tables), step_time, [crowd])
    outcomes = simulator.run(requests)
    clients: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        clients[outcome.request.tenant].append(outcome)
    named = sorted((name for name in clients if name), key=lambda name: (-len(clients[name]), name))
    run = PolicyRun(
        policy=policy,
        figures=figures_of(outcomes, simulator.now),
        clients={name: figures_of(clients[name], simulator.now) for name in named},
        steps=crowd.steps,
        batch=crowd.running / max(1, crowd.steps),
        used=crowd.used / max(1, crowd.total),
        longest_queue=crowd.longest_queue,
        difference=difference(of_outcomes(outcomes), max(one.request.at_s for one in outcomes)) if named else None,
    )
    return run, outcomes
