"""What `puna bench` prints: figures as tables, then the machine and what else ran on it.

Knows the reports of puna/bench and nothing of how they were measured. Names that come from files or servers are shown
as plain text.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from puna.bench.figures import KernelReport, LayoutReport, Report, Target
from puna.bench.limits import MachineLimits
from puna.bench.machine import MachineReport
from puna.cli.plain import plain
from puna.plan.step_time import StepTime
from puna.workloads.spread import Spread

MIN_WIDTH = 100  # of a table where there is no terminal


def print_latency(report: Report) -> None:
    assert report.latency is not None
    assert report.workload is not None
    figures = report.latency
    table = _table("one stream")
    _add(table, "first token, ms", figures.first_token_ms, 1)
    _add(table, "between tokens, median, ms", figures.token_ms_p50, 2)
    _add(table, "  90th percentile", figures.token_ms_p90, 2)
    _add(table, "  99th percentile", figures.token_ms_p99, 2)
    _add(table, "decoding, tokens/s", figures.tokens_per_s, 1)
    _print(table, report.target, report.machine, f"{report.workload.input_len} in, {report.workload.output_len} out")


def print_throughput(report: Report) -> None:
    assert report.throughput is not None
    assert report.workload is not None
    figures, workload = report.throughput, report.workload
    table = _table(f"{workload.sequences} sequences")
    _add(table, "output, tokens/s", figures.output_tokens_per_s, 1)
    _add(table, "input and output, tokens/s", figures.total_tokens_per_s, 1)
    if figures.decode_tokens_per_s is not None:
        _add(table, "decode part, tokens/s", figures.decode_tokens_per_s, 1)
    _add(table, "first token, median, ms", figures.first_token_ms_p50, 0)
    _add(table, "  99th percentile", figures.first_token_ms_p99, 0)
    _add(table, "whole run, s", figures.wall_s, 2)
    _add(table, "prompt tokens from the cache", figures.cached_tokens, 0)
    drawn = "greedy" if workload.temperature == 0 else f"temperature {workload.temperature:g}, top-p {workload.top_p:g}"
    shared = f"{workload.shared_len} shared + " if workload.shared_len else ""
    _print(
        table,
        report.target,
        report.machine,
        f"{shared}{workload.input_len} in, {workload.output_len} out each, {drawn}",
    )


def print_prefill(report: Report) -> None:
    table = _table("prompt, tokens/s")
    for figures in report.prefill:
        _add(table, f"{figures.input_len} tokens", figures.tokens_per_s, 0)
    _print(table, report.target, report.machine, "up to the first token of the answer")


def print_kernels(report: KernelReport) -> None:
    _print_limits(report.limits)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("kernel", "step", "operators", "ms", "spread", "GB/s", "GOP/s", "bound", "share"):
        table.add_column(column, justify="left" if column in ("kernel", "step", "bound") else "right")
    for figure in report.kernels:
        table.add_row(
            Text(plain(figure.kernel)),
            figure.shape,
            str(figure.operators),
            f"{1e3 * figure.seconds.median:.3f}",
            f"{figure.seconds.share:.0%}",
            f"{figure.moved_bytes_per_s / 1e9:.1f}",
            f"{figure.operations_per_s / 1e9:,.0f}",
            figure.bound,
            f"{figure.share:.0%}",
        )
    what = (
        "ms: all operators of a kind together, decoding behind 192 tokens each; bound: what limits a kernel at the "
        "least, memory at the speed of a working set of that size or operations at their peak; share: of that bound"
    )
    if report.target.path == "amx":
        what += "; an engine of one sequence, as `puna chat`, runs on another path: look at decode 1 with --isa avx512"
    _print(table, report.target, report.machine, what)


def print_layouts(report: LayoutReport) -> None:
    _print_limits(report.limits)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("type", "bits", "packed", "rows", "ms", "spread", "GB/s", "GOP/s", "bound", "share", "beside Q4_1"):
        table.add_column(column, justify="left" if column in ("type", "bound") else "right")
    for figure in report.layouts:
        table.add_row(
            figure.type,
            f"{figure.bits:.2f}",
            f"{figure.packed_bits:.2f}",
            str(figure.rows),
            f"{1e3 * figure.seconds.median:.3f}",
            f"{figure.seconds.share:.0%}",
            f"{figure.moved_bytes_per_s / 1e9:.1f}",
            f"{figure.operations_per_s / 1e9:,.0f}",
            figure.bound,
            f"{figure.share:.0%}",
            f"{figure.beside:.2f}",
        )
    _print_beside(table, report.machine, f"random weights; {report.limits.path}, {report.limits.threads} threads")


def _print_limits(limits: MachineLimits) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("limits of this machine")
    table.add_column("", justify="right")
    for point in limits.read:
        table.add_row(f"read, {_bytes(point.working_bytes)} over and over", f"{point.bytes_per_s / 1e9:.0f} GB/s")
    for kind, rate in limits.operations_per_s.items():
        table.add_row(f"multiply and add, {kind}", f"{rate / 1e9:,.0f} GOP/s")
    table.add_row("threads meet at a barrier", f"{limits.barrier_s * 1e9:.0f} ns")
    table.add_row("an empty job on the pool", f"{limits.dispatch_s * 1e9:.0f} ns")
    report_console().print(table)
    report_console().print()


def _table(title: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(title)
    for column in ("median", "least", "most"):
        table.add_column(column, justify="right")
    return table


def _add(table: Table, name: str, values: Spread, digits: int) -> None:
    table.add_row(name, *(f"{value:,.{digits}f}" for value in (values.median, values.low, values.high)))


def _print(table: Table, target: Target, machine: MachineReport, what: str) -> None:
    _print_beside(table, machine, f"{plain(target.model)}: {what}; {_engine(target)}")


def _print_beside(table: Table, machine: MachineReport, what: str) -> None:
    """`what` was measured, and what else ran meanwhile."""
    console = report_console()
    console.print(table)
    console.print()
    print_machine(console, machine, what)


def print_machine(console: Console, machine: MachineReport, what: str, *, with_server: bool = False) -> None:
    """What was measured, where, and what else ran meanwhile. `with_server`: that may be the measured server itself."""
    others = "others, the server among them if it runs here," if with_server else "others"
    console.print(Text(what))
    console.print(
        Text(
            f"{plain(machine.processor)}, {machine.usable_threads} of {machine.cores} cores usable; {machine.date}; "
            f"meanwhile {others} had {machine.others_share:.0%} of it and the host took {machine.steal_share:.0%}"
        )
    )
    for process in machine.busy_processes:
        console.print(Text(f"  busy beside this: {plain(process.name)} ({process.pid}), {process.cores:.2f} cores"))
    if not machine.quiet and not with_server:
        console.print(Text("the machine was not quiet: do not believe these figures"), style="yellow")


def _engine(target: Target) -> str:
    if target.url is not None:
        return f"server {plain(target.url)}"
    path = f" {target.path}, {target.threads} threads" if target.path else ""
    return f"{target.backend}{path}, compute {target.compute}, cache {target.kv_dtype}"


def _bytes(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"


def print_steps(times: StepTime, machine: MachineReport) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tokens of a step")
    table.add_column("ms", justify="right")
    for tokens, seconds in times.points:
        table.add_row(f"{tokens}", f"{1e3 * seconds:.2f}")
    further = {
        "a row of one token more, us": times.row_s,
        "1,000 keys for one token, us": 1e3 * times.key_s,
        "1,000 keys for one of many, us": 1e3 * times.prompt_key_s,
        "a block copied, us": times.copy_s,
    }
    for name, seconds in further.items():
        table.add_row(name, f"{1e6 * seconds:.2f}")
    console = report_console()
    console.print(table)
    console.print()
    print_machine(console, machine, plain(times.name))


def report_console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=max(MIN_WIDTH, console.width))
