"""What is left of decoding when the machine is shared: busy processes beside it, one core, a control group's quota.

Every scenario decodes with the native core in a process of its own: alone; beside one and two processes that never
sleep; on one core; under a quota of one CPU (where control groups can be made). Scenarios are interleaved and repeated.
A line gives tokens a second, what is left of the figure it is compared with, and the least that should be left: what
the other processes did not take, less 15 points. Run: python benchmarks/shared_machine.py --model smollm2
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

TOLERANCE = 0.15
CONTEXT = 128


@dataclass(frozen=True)
class Scenario:
    """`against`: the scenario it is compared with, and with how many threads. `cpus` and `quota`: 0 is no limit."""

    name: str
    threads: int
    against: str
    busy: int = 0
    cpus: int = 0
    quota: float = 0.0


def scenarios(threads: int) -> list[Scenario]:
    return [
        Scenario("alone", threads, "alone"),
        Scenario("alone, 1 thread", 1, "alone, 1 thread"),
        Scenario("1 busy process", threads, "alone", busy=1),
        Scenario("2 busy processes", threads, "alone", busy=2),
        Scenario("one core, 1 thread", 1, "alone, 1 thread", cpus=1),
        Scenario("one core", threads, "one core, 1 thread", cpus=1),
        Scenario("quota of 1 CPU, 1 thread", 1, "alone, 1 thread", quota=1.0),
        Scenario("quota of 1 CPU", threads, "quota of 1 CPU, 1 thread", quota=1.0),
    ]


def decode(model: str, threads: int, sequences: int, seconds: float, pin: bool) -> dict[str, float]:
    """Tokens a second of `sequences` rows at a context of 128 tokens, after half a second that does not count."""
    from puna.kernels.batch import KVConfig, StepBatch
    from puna.kernels.cpu import NativeInterpreter
    from puna.models.load import load_model
    from puna.models.names import resolve
    from tests.kernels.steps import rows

    loaded = load_model(resolve(model))
    blocks = CONTEXT // 16 + 1
    native = NativeInterpreter(
        loaded.program, loaded.weights, KVConfig(1 + sequences * blocks), threads=threads, pin=pin
    )
    batch = StepBatch(
        token_ids=np.random.default_rng(1).integers(0, loaded.program.vocab_size, sequences, np.int32),
        positions=np.full(sequences, CONTEXT, np.int32),
        query_start=np.arange(sequences + 1, dtype=np.int32),
        tables=np.arange(1, 1 + sequences * blocks, dtype=np.int32).reshape(sequences, blocks),
        moves=np.zeros((0, 3), np.int32),
        samples=rows(range(sequences)),
    )
    until = time.perf_counter() + 0.5
    while time.perf_counter() < until:
        native.step(batch)
    steps, begun, cpu = 0, time.perf_counter(), time.process_time()
    while (now := time.perf_counter()) < begun + seconds:
        native.step(batch)
        steps += 1
    return {
        "tokens_s": steps * sequences / (now - begun),
        "cpus": (time.process_time() - cpu) / (now - begun),
        "engaged": native.engaged_threads,
    }


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Processes that never sleep."""
    children = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


@contextmanager
def quota_group(cpus: float) -> Iterator[Path]:
    """A control group with a quota, version 2 or 1; OSError where this user may not make one."""
    root = Path("/sys/fs/cgroup")
    one = (root / "cpu" / "cpu.cfs_quota_us").exists()
    group = Path(tempfile.mkdtemp(prefix="puna-", dir=root / "cpu" if one else root))
    try:
        name, text = ("cpu.cfs_quota_us", f"{cpus * 1e5:.0f}") if one else ("cpu.max", f"{cpus * 1e5:.0f} 100000")
        (group / name).write_text(text)
        yield group
    finally:
        group.rmdir()


def machine_cpu_s() -> float:
    """CPU time that the whole machine spent on anything but idling, since it started."""
    user, nice, system, _, _, interrupt, soft = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + interrupt + soft) / os.sysconf("SC_CLK_TCK")


def child_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(scenario: Scenario, options: argparse.Namespace, sequences: int) -> dict[str, float]:
    """Runs one scenario in a child; adds the share of the machine that others took, whoever they are."""
    child = [sys.executable, __file__, "--model", options.model, "--seconds", str(options.seconds)]
    child += ["--child", str(scenario.threads), str(sequences)] + (["--no-pin"] if options.no_pin else [])
    with ExitStack() as stack:
        stack.enter_context(busy_processes(scenario.busy))
        group = stack.enter_context(quota_group(scenario.quota)) if scenario.quota else None

        def enter() -> None:
            if group is not None:
                (group / "cgroup.procs").write_text(str(os.getpid()))
            if scenario.cpus:
                os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: scenario.cpus])

        child_before, before, begun = child_cpu_s(), machine_cpu_s(), time.perf_counter()
        done = subprocess.run(child, preexec_fn=enter, capture_output=True, text=True, check=True)
        others_s = machine_cpu_s() - before - (child_cpu_s() - child_before)
        taken = max(0.0, others_s) / (time.perf_counter() - begun) / (os.cpu_count() or 1)
    return {**json.loads(done.stdout), "taken": taken}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--seconds", type=float, default=2.0, help="of decoding, a run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="scenarios that begin with one of these")
    parser.add_argument("--no-pin", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=int, nargs=2, metavar=("THREADS", "SEQUENCES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(decode(options.model, *options.child, options.seconds, not options.no_pin)))
        return
    wanted = scenarios(options.threads)
    if options.only:
        wanted = [s for s in wanted if s.name.startswith(tuple(options.only))]
    runs: dict[tuple[int, str], list[dict[str, float]]] = {}
    for _ in range(options.repeats):
        for scenario in list(wanted):
            for sequences in options.sequences:
                try:
                    run = measure(scenario, options, sequences)
                except OSError as error:
                    print(f"left out: {scenario.name}: {error}")
                    wanted.remove(scenario)
                    break
                runs.setdefault((sequences, scenario.name), []).append(run)
    report(wanted, runs)
    if options.json:
        options.json.write_text(json.dumps([{"sequences": n, "scenario": s, "runs": r} for (n, s), r in runs.items()]))


def report(wanted: list[Scenario], runs: dict[tuple[int, str], list[dict[str, float]]]) -> None:
    print("sequences  scenario                    tokens/s   (min .. max)    CPUs  taken   left  bound")
    for sequences in sorted({n for n, _ in runs}):
        for scenario in wanted:
            mine = runs[sequences, scenario.name]
            speeds = [run["tokens_s"] for run in mine]
            taken, cpus = (statistics.median(run[key] for run in mine) for key in ("taken", "cpus"))
            base = runs.get((sequences, scenario.against))
            left = statistics.median(speeds) / statistics.median(r["tokens_s"] for r in base) if base else float("nan")
            bound = 1 - taken - TOLERANCE
            verdict = "" if left >= bound else "  MISSED"
            spread = f"({min(speeds):.0f} .. {max(speeds):.0f})"
            print(
                f"{sequences:9}  {scenario.name:26} {statistics.median(speeds):9.0f}   {spread:15} {cpus:5.2f} "
                f"{taken:6.0%} {left:6.0%} {bound:6.0%}{verdict}"
            )


if __name__ == "__main__":
    main()
