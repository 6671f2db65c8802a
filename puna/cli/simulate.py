"""`puna simulate`: a trace through the real scheduler under a virtual clock, policies side by side.

Parses, runs, prints; the simulator is puna/plan. Nothing is computed: a step takes what the step times say.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from puna.cli import options
from puna.cli.plain import plain
from puna.errors import InputError

if TYPE_CHECKING:
    from puna.plan.comparison import PolicyRun
    from puna.plan.figures import Times

_TRACE, _ENGINE = "The trace", "The engine"
MOST_CLIENTS = 12  # that are shown


def simulate(
    trace: Annotated[Path, typer.Argument(help="A file of requests, in one of the formats of docs/serving.md.")],
    policy: Annotated[str, typer.Option("--policy", "-p", help="One or several, as fcfs,priority.")] = "fcfs",
    steps: Annotated[
        str, typer.Option("--steps", help="a100-13b, a10g-7b, xeon-135m, or a file (puna bench steps --json).")
    ] = "a100-13b",
    priority: Annotated[
        list[str] | None, typer.Option("--priority", help="Of a client, as u03=-1; lower is first, others have 0.")
    ] = None,
    requests: Annotated[int | None, typer.Option("--requests", "-n", min=1, help="So many. [all]")] = None,
    speed: Annotated[float, typer.Option("--speed", rich_help_panel=_TRACE, help="2 is twice as fast.")] = 1.0,
    length_scale: Annotated[float, typer.Option("--length-scale", rich_help_panel=_TRACE, help="Of lengths.")] = 1.0,
    input_len: Annotated[
        int, typer.Option("--input-len", "-i", min=1, rich_help_panel=_TRACE, help="Where it has no lengths.")
    ] = 128,
    output_len: Annotated[
        int, typer.Option("--output-len", "-o", min=1, rich_help_panel=_TRACE, help="Where it has no lengths.")
    ] = 128,
    seed: Annotated[int, typer.Option("--seed", rich_help_panel=_TRACE, help="For traces that give rates.")] = 1,
    kv_tokens: Annotated[
        int, typer.Option("--kv-tokens", rich_help_panel=_ENGINE, help="What the pool holds, in tokens.")
    ] = 15_700,
    block_size: Annotated[int, typer.Option("--block-size", rich_help_panel=_ENGINE, help="In tokens.")] = 16,
    swap_tokens: Annotated[
        int, typer.Option("--swap-tokens", rich_help_panel=_ENGINE, help="Room to swap out; 0: recompute.")
    ] = 0,
    memory: Annotated[
        Literal["paged", "max", "pow2", "oracle"],
        typer.Option("--memory", rich_help_panel=_ENGINE, help="In blocks, or as much contiguous as may be wanted."),
    ] = "paged",
    max_model_len: Annotated[
        int, typer.Option("--max-model-len", rich_help_panel=_ENGINE, help="Longer requests are cut.")
    ] = 2048,
    max_seqs: Annotated[int, typer.Option("--max-seqs", rich_help_panel=_ENGINE, help="That run at once.")] = 256,
    budget: Annotated[int, typer.Option("--budget-tokens", rich_help_panel=_ENGINE, help="A step.")] = 2048,
    max_waiting: Annotated[
        int, typer.Option("--max-waiting", rich_help_panel=_ENGINE, help="More are refused; 0: no limit.")
    ] = 0,
    prefix_cache: Annotated[bool, typer.Option("--prefix-cache/--no-prefix-cache", rich_help_panel=_ENGINE)] = True,
    json: Annotated[Path | None, typer.Option("--json", help="Write all figures, each client's too.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw waits to this PNG or SVG.")] = None,
) -> None:
    """What a trace would have felt: waits and throughput by policy, without running a model."""
    from puna.plan.comparison import check_policies
    from puna.plan.comparison import simulate as run_policy
    from puna.plan.profiles import step_times
    from puna.plan.simulated import requests_of
    from puna.sched.config import SchedulerConfig
    from puna.workloads.traces import read_trace

    names = [name.strip() for name in policy.split(",")]
    try:
        check_policies(names)
        priorities = dict(_priority(text) for text in priority or ())
        for name, value in (("speed", speed), ("length_scale", length_scale)):
            if not 0 < value < float("inf"):
                raise InputError(f"{name} is {value}; it is above 0", param=name)
        if memory != "paged":
            block_size, prefix_cache, swap_tokens = 1, False, 0
        config = SchedulerConfig(
            num_blocks=kv_tokens // max(1, block_size) + 1,
            max_model_len=max_model_len,
            block_size=block_size,
            budget_tokens=budget,
            max_seqs=max_seqs,
            prefix_cache=prefix_cache,
            tier_blocks=swap_tokens // max(1, block_size),
            max_waiting_seqs=max_waiting or 1 << 30,
        )
    except InputError as error:
        raise options.wrong_usage(_named(error)) from None
    times = step_times(steps)
    for path in (json, plot):
        _check_writable(path)
    arrivals = read_trace(trace, requests, seed)
    if unknown := set(priorities) - {arrival.client for arrival in arrivals}:
        raise InputError(f"no request of the trace {trace} is from a client {min(unknown)!r}")
    asked = requests_of(
        arrivals,
        prompt_len=input_len,
        output_len=output_len,
        length_scale=length_scale,
        speed=speed,
        max_len=max_model_len,
        priorities=priorities,
    )
    runs, outcomes = [], {}
    for name in names:
        run, outcomes[name] = run_policy(asked, name, config, times, memory)
        runs.append(run)
    if json is not None:
        import msgspec

        document = {"trace": str(trace), "steps": times, "memory": memory, "runs": runs}
        json.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
    if plot is not None:
        from puna.plan.simulation_plot import plot as draw

        draw(outcomes, f"{trace.name}, steps of {times.name}, {memory} memory", plot)
    _print(runs, f"{len(asked):,} requests; steps of {plain(times.name)}; {memory} memory of {kv_tokens:,} tokens")


def _priority(text: str) -> tuple[str, int]:
    client, found, value = text.rpartition("=")
    try:
        return client, int(value if found else "")
    except ValueError:
        raise InputError(f"{text!r} is no client and number, as u03=-1", param="priority") from None


def _named(error: InputError) -> InputError:
    """The option instead of the field."""
    named = {"num_blocks": "kv_tokens", "max_waiting_seqs": "max_waiting", "tier_blocks": "swap_tokens"}
    return InputError(str(error), param=named.get(error.param or "", error.param))


def _check_writable(path: Path | None) -> None:
    if path is not None:
        try:
            path.open("ab").close()
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error


def _print(runs: list[PolicyRun], what: str) -> None:
    from rich.table import Table

    from puna.cli.bench_tables import report_console

    console = report_console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for run in runs:
        table.add_column(run.policy, justify="right")
    rows: dict[str, Any] = {
        "served, refused": lambda run: f"{run.figures.served:,}, {run.figures.refused:,}",
        "first token, s: mean": lambda run: _seconds(run.figures.wait_s, "mean"),
        "  50th, 99th percentile": lambda run: _both(run.figures.wait_s),
        "between tokens, ms: mean": lambda run: _seconds(run.figures.token_s, "mean", 1e3),
        "whole answer, s: mean": lambda run: _seconds(run.figures.whole_s, "mean"),
        "latency a token, ms: mean": lambda run: _seconds(run.figures.normalised_s, "mean", 1e3),
        "tokens/s out": lambda run: f"{run.figures.output_tokens_per_s:,.0f}",
        "prompt tokens from the cache": lambda run: f"{run.figures.cached_tokens:,}",
        "batch, share of the pool": lambda run: f"{run.batch:.1f}, {run.used:.0%}",
        "longest queue": lambda run: f"{run.longest_queue:,}",
        "service apart, tokens/s: most, mean": lambda run: _apart(run),
        "preemptions": lambda run: f"{run.figures.preemptions:,}",
    }
    for name, cell in rows.items():
        table.add_row(name, *(cell(run) for run in runs))
    shown = list(runs[0].clients)[:MOST_CLIENTS] if len(runs[0].clients) > 1 else []
    for client in shown:
        waits = (_seconds(run.clients[client].wait_s, "mean") for run in runs)
        table.add_row(f"first token of {plain(client, 20)}, s: mean", *waits)
    console.print(table)
    console.print()
    hidden = len(runs[0].clients) - len(shown)
    console.print(what + (f"; {hidden} clients more in --json" if shown and hidden else ""))


def _seconds(times: Times | None, which: str, scale: float = 1.0) -> str:
    return "-" if times is None else _number(scale * float(getattr(times, which)))


def _apart(run: PolicyRun) -> str:
    return "-" if run.difference is None else f"{run.difference.most:,.0f}, {run.difference.mean:,.0f}"


def _both(times: Times | None) -> str:
    return "-" if times is None else f"{_number(times.p50)}, {_number(times.p99)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
