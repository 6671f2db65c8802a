"""The simulator: the real scheduler gets everybody through, whatever memory it has; the same seed is the same run."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.plan.figures import figures_of
from puna.plan.occupancy import Occupancy
from puna.plan.reserved_tables import RESERVATIONS, ReservedTables
from puna.plan.sharing import Sharing, fork_saving
from puna.plan.simulated import Outcome, SimulatedRequest, requests_of
from puna.plan.simulator import Moment, Simulator
from puna.plan.step_time import StepTime
from puna.sched.config import SchedulerConfig
from puna.sched.policies import POLICIES
from puna.sched.scheduler import Scheduler
from puna.workloads.arrivals import arrival_times
from puna.workloads.traces import Arrival

TIMES = StepTime(name="test", points=((0, 0.01), (100, 0.02)), row_s=1e-4, key_s=1e-6)
MEMORY = ["paged", *RESERVATIONS]


class Invariants:
    """A watch that asks the scheduler, every step, whether all that it promises holds."""

    def __init__(self) -> None:
        self.steps = 0

    def on_step(self, moment: Moment) -> None:
        moment.scheduler.check_invariants()
        self.steps += 1


def scheduler(memory: str = "paged", policy: str = "fcfs", **fields: int | bool) -> Scheduler:
    limits: dict[str, int | bool] = {"num_blocks": 129, "max_model_len": 64, "block_size": 4, "budget_tokens": 64}
    config = SchedulerConfig(**{**limits, "prefix_cache": False, **fields})  # type: ignore[arg-type]
    tables = None if memory == "paged" else ReservedTables(config, RESERVATIONS[memory])
    return Scheduler(config, POLICIES[policy](), tables)


def requests(seed: int, count: int = 20, samples: int = 1, longest: int = 32) -> list[SimulatedRequest]:
    dice = random.Random(seed)
    times = arrival_times(5.0, count, dice)
    return [
        SimulatedRequest(number, at_s, dice.randint(1, longest), dice.randint(1, longest), samples, priority=number % 3)
        for number, at_s in enumerate(times)
    ]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    blocks=st.integers(17, 60),
    memory=st.sampled_from(MEMORY),
    policy=st.sampled_from(sorted(POLICIES)),
    samples=st.integers(1, 3),
    tier=st.sampled_from([0, 8]),
    cached=st.booleans(),
)
def test_everybody_is_served_whole_and_every_block_comes_back(
    seed: int, blocks: int, memory: str, policy: str, samples: int, tier: int, cached: bool
) -> None:
    paged = memory == "paged"
    samples = samples if paged else 1
    blocks = 1 + (blocks - 1) * samples  # the longest request fits with all its samples
    asked = requests(seed, samples=samples)
    used = scheduler(memory, policy, num_blocks=blocks, tier_blocks=tier * paged, prefix_cache=cached and paged)
    watch = Invariants()
    outcomes = Simulator(used, TIMES, [watch]).run(asked)
    assert [one.request for one in outcomes] == asked
    for one in outcomes:
        assert one.refused is None
        assert one.first_s is not None
        assert one.done_s is not None
        assert one.request.at_s < one.first_s <= one.done_s
    used.check_invariants()
    stats = used.stats()
    assert (stats.blocks_used, stats.running, stats.waiting, stats.swapped) == (0, 0, 0, 0)
    assert sum(one.preemptions for one in outcomes) == stats.preemptions
    assert paged or stats.preemptions == 0
    assert watch.steps > 0


@pytest.mark.parametrize("memory", MEMORY)
def test_the_same_seed_is_the_same_run(memory: str) -> None:
    def run(seed: int) -> list[Outcome]:
        return Simulator(scheduler(memory, num_blocks=33), TIMES).run(requests(seed, 40))

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_time_is_that_of_the_steps_and_of_waiting_for_arrivals() -> None:
    asked = [SimulatedRequest(0, 1.0, 10, 3), SimulatedRequest(1, 50.0, 1, 1)]
    (first, second) = Simulator(scheduler(), TIMES).run(asked)
    step = [0.01 + 0.0001 * tokens for tokens in (10, 1, 1)]
    assert first.first_s == pytest.approx(1.0 + step[0])
    keys = 11 + 12
    assert first.done_s == pytest.approx(1.0 + sum(step) + 2 * 1e-4 + keys * 1e-6)
    assert second.done_s == pytest.approx(50.0 + 0.01 + 0.0001 + 1e-4 + 1e-6)


def test_what_can_never_run_is_refused_and_the_rest_goes_on() -> None:
    asked = [SimulatedRequest(0, 0.0, 60, 30), SimulatedRequest(1, 0.0, 5, 5)]
    refused, served = Simulator(scheduler(), TIMES).run(asked)
    assert refused.done_s is None
    assert "max_model_len" in str(refused.refused)
    assert served.done_s is not None
    figures = figures_of([refused, served], 2.0)
    assert (figures.served, figures.refused, figures.output_tokens, figures.output_tokens_per_s) == (1, 1, 5, 2.5)


@pytest.mark.parametrize(("memory", "batch"), [("max", 2), ("pow2", 4), ("oracle", 4), ("paged", 9)])
def test_a_pool_holds_as_many_as_its_kind_of_memory_lets_it(memory: str, batch: int) -> None:
    """128 slots. Sequences of 13 + 9 tokens: the context is 64, the answer rounded up 16, all together 22, rounded up
    by the allocator 32; in blocks of 1, with preemption, between 13 and 22 tokens each."""
    used = scheduler(memory, block_size=1, num_blocks=129)
    watch = Occupancy(backlogged=True, skip=4)
    Simulator(used, TIMES, [watch]).run([SimulatedRequest(number, 0.0, 13, 9) for number in range(60)])
    found = watch.use()
    assert found.batch == batch if memory != "paged" else batch - 3 < found.batch < batch + 1
    assert found.written + found.ahead + found.rounding + found.free == pytest.approx(1)
    assert found.written == pytest.approx(found.batch * found.written_len / 128)


@pytest.mark.parametrize("samples", [2, 4, 6])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_forks_save_the_very_blocks_of_the_closed_form(samples: int, block_size: int) -> None:
    dice = random.Random(samples)
    lengths = [(dice.randint(1, 60), dice.randint(1, 60)) for _ in range(12)]
    asked = [SimulatedRequest(i, 0.0, *pair, samples=samples) for i, pair in enumerate(lengths)]
    used = scheduler(block_size=block_size, num_blocks=12 * 6 * 120, max_model_len=120, budget_tokens=10**4)
    watch = Sharing()
    Simulator(used, TIMES, [watch]).run(asked)
    assert watch.saved == pytest.approx(fork_saving(lengths, samples, block_size), abs=1e-12)


def test_a_single_sample_saves_nothing_and_a_long_prompt_nearly_all_but_one() -> None:
    assert fork_saving([(33, 20)], 1, 16) == 0
    assert fork_saving([(16 * 500, 2)], 4, 16) == pytest.approx(0.75, abs=1e-3)


def test_prompts_with_the_same_blocks_find_each_other_in_the_cache() -> None:
    arrivals = [Arrival(0.0, 40, 2, (1, 2), 16, "a"), Arrival(9.0, 40, 2, (1, 3), 16), Arrival(18.0, 40, 2, (1, 2), 16)]
    asked = requests_of(arrivals, speed=3.0, priorities={"a": -1})
    assert [one.at_s for one in asked] == [0.0, 3.0, 6.0]
    assert [(one.tenant, one.priority) for one in asked] == [("a", -1), ("", 0), ("", 0)]
    outcomes = Simulator(scheduler(prefix_cache=True), TIMES).run(asked)
    assert [one.cached_len for one in outcomes] == [0, 16, 32]


@pytest.mark.parametrize(
    ("lengths", "expected"), [((100, 100), (32, 32)), ((10, 100), (10, 54)), ((100, 10), (54, 10)), ((9, 9), (9, 9))]
)
def test_lengths_that_do_not_fit_are_cut(lengths: tuple[int, int], expected: tuple[int, int]) -> None:
    (one,) = requests_of([Arrival(0.0, *lengths)], max_len=64)
    assert (one.prompt_len, one.output_len) == expected


def run_as(policy: str, make: Callable[[], list[SimulatedRequest]] = lambda: requests(1, 40)) -> list[Outcome]:
    return Simulator(scheduler(policy=policy, max_seqs=1), TIMES).run(make())


def test_policies_differ_in_who_waits_and_in_nothing_else() -> None:
    fcfs, priority = run_as("fcfs"), run_as("priority")
    assert [one.request for one in fcfs] == [one.request for one in priority]

    def wait(outcomes: list[Outcome], of: int) -> float:
        return sum(one.wait_s for one in outcomes if one.request.priority == of)

    assert wait(priority, 0) < wait(fcfs, 0)
    assert wait(priority, 2) > wait(fcfs, 2)
