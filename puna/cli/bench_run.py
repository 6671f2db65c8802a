"""A measurement from beginning to end: opens an engine or finds a server, warms it up, repeats, watches the machine.

Shows progress on a terminal; prints no figures.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from puna.bench.figures import KernelReport, LayoutReport, Report, Target
from puna.bench.machine import MachineReport, MachineWatch
from puna.bench.offline import Run, run_offline
from puna.bench.online import find_server, run_online
from puna.bench.workload import Workload, check_fits
from puna.cli.progress import PullProgress, loading
from puna.engine.config import EngineConfig
from puna.engine.core import Engine
from puna.models.names import resolve
from puna.plan.step_time import StepTime

WARM_OUTPUT = 4
RunOne = Callable[[Workload, int], Run]


class Bench:
    """Something that runs workloads, and what there is to say about it."""

    def __init__(self, target: Target, run_one: RunOne, max_model_len: int | None) -> None:
        self._target, self._run_one, self._max_model_len = target, run_one, max_model_len
        self._watch = MachineWatch()

    def run(self, workloads: Sequence[Workload], repeats: int) -> list[list[Run]]:
        """The runs of each workload. Workloads take turns, so that a slow minute of the machine meets all of them."""
        if self._max_model_len is not None:
            for workload in workloads:
                check_fits(workload, self._max_model_len)
        runs: list[list[Run]] = [[] for _ in workloads]
        with _progress("measuring", len(workloads) * (repeats + 1)) as tick:
            for number, workload in enumerate(workloads):
                short = msgspec.structs.replace(workload, output_len=min(workload.output_len, WARM_OUTPUT))
                self._run_one(short, -1 - number)
                tick()
            self._watch = MachineWatch()
            for repetition in range(repeats):
                for workload, done in zip(workloads, runs, strict=True):
                    done.append(self._run_one(workload, repetition))
                    tick()
        return runs

    def report(self, **figures: Any) -> Report:
        return Report(target=self._target, machine=self._watch.report(), **figures)


@contextmanager
def open_bench(config: EngineConfig, url: str | None, api_key: str | None) -> Iterator[Bench]:
    """On a server where `url` is given, otherwise on an engine in this process."""
    if url is not None:
        server = find_server(url, api_key)
        target = Target(model=server.model, url=url)
        yield Bench(target, lambda workload, repetition: run_online(server, workload, repetition), None)
        return
    settled = _resolved(config)
    with loading(config.model):
        engine = Engine(settled)
    try:
        target = _target(config.model, engine.config, engine.backend.interpreter)
        yield Bench(
            target, lambda workload, repetition: run_offline(engine, workload, repetition), engine.max_model_len
        )
    finally:
        engine.close()


def run_kernels(config: EngineConfig) -> KernelReport:
    """Limits of the machine and every kernel of a model, on the native backend."""
    from puna.bench.kernels import kernel_names, measure_kernels
    from puna.bench.limits import limit_steps, measure_limits
    from puna.engine.backend import check_threads, settle_cache
    from puna.kernels.cpu import available_threads, settled_path
    from puna.models.load import load_model

    check_threads(config.threads)
    path = settled_path(config.isa)
    resolved = _resolved(config)
    with loading(config.model):
        model = load_model(resolve(resolved.model))
    settled = settle_cache(resolved, model)
    watch = MachineWatch()
    with _progress("measuring", limit_steps() + len(kernel_names(model.program, settled))) as tick:
        limits = measure_limits(path, config.threads or available_threads(), tick)
        kernels = measure_kernels(model, settled, limits, tick)
    target = Target(
        model=config.model,
        backend="cpu",
        path=path,
        threads=limits.threads,
        compute=config.compute,
        kv_dtype=settled.kv_dtype,
    )
    return KernelReport(target=target, machine=watch.report(), limits=limits, kernels=kernels)


def run_layouts(types: Sequence[str], row_counts: Sequence[int], threads: int, isa: str) -> LayoutReport:
    """Limits of the machine and products with these types of weights, with so many rows."""
    from puna.bench.layouts import layout_steps, measure_layouts
    from puna.bench.limits import limit_steps, measure_limits
    from puna.engine.backend import check_threads
    from puna.kernels.cpu import available_threads, settled_path

    check_threads(threads)
    path = settled_path(isa)
    watch = MachineWatch()
    with _progress("measuring", limit_steps() + layout_steps(types, row_counts)) as tick:
        limits = measure_limits(path, threads or available_threads(), tick)
        layouts = measure_layouts(types, row_counts, limits, tick)
    return LayoutReport(machine=watch.report(), limits=limits, layouts=layouts)


def run_steps(config: EngineConfig) -> tuple[StepTime, MachineReport]:
    """What steps take, and what else ran meanwhile."""
    from puna.bench.step_profile import measure_step_time
    from puna.engine.backend import open_backend

    with loading(config.model):
        backend = open_backend(_resolved(config))
    watch = MachineWatch()
    times = measure_step_time(backend.interpreter, config.model)
    return times, watch.report()


def _resolved(config: EngineConfig) -> EngineConfig:
    with PullProgress() as progress:
        return msgspec.structs.replace(config, model=str(resolve(config.model, progress=progress)))


def _target(model: str, config: EngineConfig, interpreter: Any) -> Target:
    return Target(
        model=model,
        backend=config.backend,
        path=getattr(interpreter, "isa", None),
        threads=getattr(interpreter, "threads", None),
        compute=config.compute,
        kv_dtype=config.kv_dtype,
        budget_tokens=config.budget_tokens,
    )


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, nothing elsewhere. Drawn when something is done, not by a thread that would disturb."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        task = bar.add_task(what, total=total)
        bar.refresh()

        def tick() -> None:
            bar.advance(task)
            bar.refresh()

        yield tick
