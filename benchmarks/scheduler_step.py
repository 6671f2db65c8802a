"""What one scheduler step costs the host: microseconds of Python for a batch of decoding sequences.

    python benchmarks/scheduler_step.py [--sequences 32] [--steps 1000]

Medians over the steps of `schedule`, `commit` and the `append` of one drawn token a sequence, with a prefix cache and
a pool that never runs out. No model runs; compare with the time of a forward pass, or with the target of 0.3 ms of
host work a step at 256 sequences.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from array import array

from puna.sched.config import SchedulerConfig
from puna.sched.fcfs import Fcfs
from puna.sched.scheduler import Scheduler
from puna.sched.sequence import Sequence

PROMPT_LEN = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 32, 128, 256])
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    print(f"{'sequences':>9} {'schedule':>9} {'commit':>9} {'append':>9}   median µs a step")
    for sequences in options.sequences:
        schedule, commit, append = measure(sequences, options.steps)
        print(f"{sequences:9d} {schedule:9.1f} {commit:9.1f} {append:9.1f}")


def measure(sequences: int, steps: int) -> tuple[float, float, float]:
    """Medians in microseconds."""
    longest = PROMPT_LEN + steps + 2
    config = SchedulerConfig(
        num_blocks=sequences * (longest // 16 + 1) + 1,
        max_model_len=longest,
        max_seqs=sequences,
        budget_tokens=sequences * PROMPT_LEN,
    )
    scheduler = Scheduler(config, Fcfs())
    for number in range(sequences):
        scheduler.add(Sequence(number, array("i", [number] * PROMPT_LEN), PROMPT_LEN, longest), 0.0)
    times: list[list[float]] = [[], [], []]
    for _ in range(steps + 1):
        marks = [time.perf_counter()]
        step = scheduler.schedule(0.0)
        marks.append(time.perf_counter())
        scheduler.commit(step, 0.0)
        marks.append(time.perf_counter())
        for row in step.rows:
            scheduler.append(row.sequence, 7, 0.0)
        marks.append(time.perf_counter())
        for phase, (begun, ended) in zip(times, itertools.pairwise(marks), strict=True):
            phase.append(ended - begun)
    schedule, commit, append = (statistics.median(phase[1:]) * 1e6 for phase in times)
    return schedule, commit, append


if __name__ == "__main__":
    main()
