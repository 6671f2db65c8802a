"""The simulated half of sharing.py: forks, what memory is used for, block sizes, the rates that can be kept up.

Every experiment is the real scheduler under puna/plan's virtual clock, at two scales: the paper's (OPT-13B on an A100
of 40 GB: 15.7k slots, step times of that device) and a small one (4,096 slots, lengths cut to 512, step times of two
cores). Knows no page and no plot: results are plain dictionaries.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec

from puna.plan.figures import figures_of
from puna.plan.occupancy import Occupancy
from puna.plan.reserved_tables import RESERVATIONS, ReservedTables
from puna.plan.sharing import Sharing, fork_saving
from puna.plan.simulated import SimulatedRequest
from puna.plan.simulator import Simulator
from puna.plan.step_time import StepTime
from puna.sched.config import SchedulerConfig
from puna.sched.fcfs import Fcfs
from puna.sched.scheduler import Scheduler
from puna.workloads.arrivals import arrival_times
from puna.workloads.lengths import ALPACA, SHAREGPT, Lengths, LogNormal

MEMORIES = ("paged", "oracle", "pow2", "max")
BLOCK_SIZES = (1, 8, 16, 32, 64, 128)
SAMPLES = (2, 4, 6)
PAPER_SLOTS, SMALL_SLOTS, SMALL_LONGEST = 15_700, 4096, 512
TRANSLATION = Lengths("translation-like", LogNormal(30, 0.6), LogNormal(35, 0.6), 512, 512)
CHAT = Lengths("chat-like", LogNormal(900, 0.5), LogNormal(338, 1.0), 1024, 1024)


@dataclass(frozen=True)
class Scale:
    """`objective_s`: mean latency over tokens of an answer, up to which a rate counts as kept up."""

    name: str
    slots: int
    step_time: StepTime
    sets: tuple[Lengths, ...]
    objective_s: float


def paper_scale(step_time: StepTime) -> Scale:
    return Scale("paper", PAPER_SLOTS, step_time, (SHAREGPT, ALPACA), 0.2)


def small_scale(step_time: StepTime) -> Scale:
    sets = tuple(lengths.cut(SMALL_LONGEST) for lengths in (SHAREGPT, ALPACA))
    return Scale("small", SMALL_SLOTS, step_time, sets, 0.1)


def scheduler_of(memory: str, slots: int, longest: int, block_size: int = 16, **further: Any) -> Scheduler:
    """`memory`: "paged", or how much is reserved at once; reservations are in tokens."""
    block_size = block_size if memory == "paged" else 1
    fields: dict[str, Any] = {"prefix_cache": False, "max_seqs": 1024, "max_waiting_seqs": 1 << 20, **further}
    config = SchedulerConfig(num_blocks=slots // block_size + 1, max_model_len=longest, block_size=block_size, **fields)
    return Scheduler(config, Fcfs(), None if memory == "paged" else ReservedTables(config, RESERVATIONS[memory]))


def requests(
    lengths: Lengths, count: int, seed: int, rate: float | None = None, **further: Any
) -> list[SimulatedRequest]:
    """At a Poisson rate, or all at once. The lengths do not depend on the rate."""
    drawn = lengths.draw(count, random.Random(f"lengths {seed}"))
    times = [0.0] * count if rate is None else arrival_times(rate, count, random.Random(f"arrivals {seed}"))
    return [
        SimulatedRequest(number, at_s, prompt, answer, **further)
        for number, (at_s, (prompt, answer)) in enumerate(zip(times, drawn, strict=True))
    ]


def count_of(lengths: Lengths) -> int:
    """Requests of a run: answers of some 150,000 tokens."""
    return 400 if lengths.answer.mean > 100 else 2000


# --- forks ---


def fork_savings(scale: Scale, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """Blocks saved: with room for everybody, with a full pool, and by the closed form for the same lengths."""
    found = []
    for lengths in scale.sets:
        for samples in SAMPLES:
            rows = []
            for seed in seeds:
                asked = requests(lengths, count_of(lengths) // 4, seed, samples=samples)
                pairs = [(one.prompt_len, one.output_len) for one in asked]
                roomy = _saved(scale, lengths, asked, 100 * scale.slots)
                rows.append((roomy, _saved(scale, lengths, asked, scale.slots), fork_saving(pairs, samples, 16)))
            roomy, full, closed = (statistics.median(column) for column in zip(*rows, strict=True))
            apart = max(abs(row[0] - row[2]) for row in rows)
            found.append(
                {
                    "set": lengths.name,
                    "samples": samples,
                    "saved": roomy,
                    "full": full,
                    "closed": closed,
                    "apart": apart,
                }
            )
    return found


def _saved(scale: Scale, lengths: Lengths, asked: list[SimulatedRequest], slots: int) -> float:
    watch = Sharing()
    Simulator(scheduler_of("paged", slots, lengths.longest), scale.step_time, [watch]).run(asked)
    return watch.saved


# --- what memory is used for ---


def pool_uses(scale: Scale, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """Everybody comes at once, so memory alone decides how many run."""
    return [
        {"set": lengths.name, "memory": memory, **_use(scale, lengths, memory, 16, seeds)}
        for lengths in scale.sets
        for memory in MEMORIES
    ]


def block_sizes(scale: Scale, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """`waste`: slots that hold nothing over those that do; `rule`: half a block but half a token, over the tokens that
    a sequence holds."""
    found = []
    for lengths in scale.sets:
        for block_size in BLOCK_SIZES:
            use = _use(scale, lengths, "paged", block_size, seeds)
            waste = (use["ahead"] + use["rounding"]) / use["written"]
            rule = (block_size - 1) / 2 / use["written_len"]
            found.append({"set": lengths.name, "block_size": block_size, "waste": waste, "rule": rule, **use})
    return found


def preemptions(scale: Scale, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """A full pool in which those that give way are recomputed, or swapped out to a tier with room for all: tokens/s of
    both. A block's way out or in takes as long as its bytes do at 25 GB/s."""
    found = []
    for lengths in scale.sets:
        for block_size in (8, 16, 32, 64):
            swap_s = scale.step_time.swap_s * block_size / 16
            sized = replace(scale, step_time=msgspec.structs.replace(scale.step_time, swap_s=swap_s))
            recompute = _use(sized, lengths, "paged", block_size, seeds)
            swap = _use(sized, lengths, "paged", block_size, seeds, tier_blocks=20 * scale.slots // block_size)
            row = {"recompute": recompute["tokens_per_s"], "swap": swap["tokens_per_s"]}
            counts = {"recomputed": recompute["preemptions"], "swapped": swap["preemptions"]}
            found.append({"set": lengths.name, "block_size": block_size, **row, **counts})
    return found


def _use(
    scale: Scale, lengths: Lengths, memory: str, block_size: int, seeds: Iterable[int], **limits: Any
) -> dict[str, Any]:
    uses = []
    for seed in seeds:
        watch = Occupancy(backlogged=True, skip=count_of(lengths) // 5)
        used = scheduler_of(memory, scale.slots, lengths.longest, block_size, **limits)
        simulator = Simulator(used, scale.step_time, [watch])
        outcomes = simulator.run(requests(lengths, count_of(lengths), seed))
        figures = figures_of(outcomes, simulator.now)
        per_s = figures.output_tokens_per_s
        uses.append({**asdict(watch.use()), "preemptions": figures.preemptions, "tokens_per_s": per_s})
    return {name: statistics.median(use[name] for use in uses) for name in uses[0]}


# --- rates ---


def sustained_rates(scale: Scale, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """The highest rate whose normalised latency keeps the objective, and the latencies at the rates that were tried."""
    return [
        {"set": lengths.name, "memory": memory, **_knee(scale, lengths, memory, seeds)}
        for lengths in scale.sets
        for memory in MEMORIES
    ]


def shared_prefixes(scale: Scale, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """Short questions behind an instruction that all have in common (the paper's section 6.4)."""
    found = []
    for shared_len in (80, 341):
        shared = tuple(range(1, shared_len + 1))
        for memory, cached in (("paged", True), ("paged", False), ("oracle", False)):
            knee = _knee(scale, TRANSLATION, memory, seeds, {"prefix_cache": cached}, {"shared": shared})
            found.append({"shared_len": shared_len, "memory": memory, "cached": cached, **knee})
    return found


def chats(scale: Scale, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """Long histories cut to their last 1,024 tokens, nothing kept between turns (the paper's section 6.5)."""
    return [{"memory": memory, **_knee(scale, CHAT, memory, seeds)} for memory in MEMORIES]


def _knee(
    scale: Scale,
    lengths: Lengths,
    memory: str,
    seeds: Iterable[int],
    limits: dict[str, Any] | None = None,
    asked: dict[str, Any] | None = None,
) -> dict[str, Any]:
    longest = 2048 if lengths is TRANSLATION else lengths.longest

    def run(rate: float | None, seed: int) -> tuple[float, float]:
        """Mean latency by tokens of the answer, and requests served a second."""
        used = scheduler_of(memory, scale.slots, longest, **(limits or {}))
        simulator = Simulator(used, scale.step_time)
        # A run has to be many times as long as an answer may take: in a short one a queue grows and nobody is late yet.
        outcomes = simulator.run(requests(lengths, 4 * count_of(lengths), seed, rate, **(asked or {})))
        return statistics.fmean(outcome.normalised_s for outcome in outcomes), len(outcomes) / simulator.now

    knees, curve = [], []
    for seed in seeds:
        _, most = run(None, seed)
        knee, tried = _highest(lambda rate, seed=seed: run(rate, seed)[0], scale.objective_s, most)
        knees.append(knee)
        curve = curve or tried
    return {"rate": statistics.median(knees), "low": min(knees), "high": max(knees), "curve": sorted(curve)}


def _highest(
    latency: Callable[[float], float], objective_s: float, most: float
) -> tuple[float, list[tuple[float, float]]]:
    """By halving the interval to 4%, from half of what is served when everybody comes at once."""
    tried: list[tuple[float, float]] = []

    def is_kept(rate: float) -> bool:
        tried.append((rate, latency(rate)))
        return tried[-1][1] <= objective_s

    low = high = most / 2
    while not is_kept(low):
        low, high = low / 2, low
    while high <= low or is_kept(high):
        low, high = high, 1.5 * high
    while high > 1.04 * low:
        middle = (low + high) / 2
        low, high = (middle, high) if is_kept(middle) else (low, middle)
    return low, tried
