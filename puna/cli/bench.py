"""`puna bench`: how quick this machine is with a model, and how near its kernels come to what the machine can do.

Parses and calls; measuring is in puna/bench, tables are in bench_tables.py. Prompts are random and all different, no
answer ends early, and every figure is a median over repetitions with the least and the most beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from puna.cli import bench_serve, options
from puna.cli.option_group import takes_groups
from puna.errors import InputError

if TYPE_CHECKING:
    from puna.bench.figures import KernelReport, LayoutReport, Report
    from puna.bench.workload import Workload
    from puna.plan.step_time import StepTime

app = typer.Typer(
    name="bench",
    help="Measure speed: of one stream, of many at once, of reading prompts, of every kernel.",
    no_args_is_help=True,
)

app.command("serve")(bench_serve.serve)

Repeats = Annotated[int, typer.Option("--repeats", "-r", min=1, max=1000, help="Repetitions of every measurement.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write everything that was measured to this file.")]
InputLen = Annotated[int, typer.Option("--input-len", "-i", help="Tokens of each prompt.")]
OutputLen = Annotated[int, typer.Option("--output-len", "-o", help="Tokens of each answer.")]
Url = Annotated[
    str | None, typer.Option("--url", help="Measure a server instead, at http://HOST:PORT, in OpenAI's shapes.")
]
ApiKey = Annotated[str | None, typer.Option("--api-key", envvar="PUNA_API_KEY", help="For --url.")]


@app.command()
@takes_groups
def latency(
    input_len: InputLen = 128,
    output_len: OutputLen = 128,
    repeats: Repeats = 5,
    json: JsonFile = None,
    url: Url = None,
    api_key: ApiKey = None,
    model: options.Model = options.DEFAULT_MODEL,
    *,
    engine: options.EngineOptions,
) -> None:
    """One stream: time to its first token, time between tokens, tokens a second."""
    if output_len < 2:
        raise typer.BadParameter("is 2 at least: there is no time between fewer tokens", param_hint="--output-len")
    workload = _workload(input_len=input_len, output_len=output_len)
    config = engine.config(model, max_seqs=1)

    from puna.bench.figures import latency_of
    from puna.cli.bench_run import open_bench
    from puna.cli.bench_tables import print_latency

    with _written(json), open_bench(config, url, api_key) as bench:
        runs = bench.run([workload], repeats)[0]
        report = bench.report(workload=workload, latency=latency_of(runs))
    _finish(report, json)
    print_latency(report)


@app.command()
@takes_groups
def throughput(
    sequences: Annotated[int, typer.Option("--sequences", "-s", help="Sequences at once.")] = 32,
    input_len: InputLen = 128,
    output_len: OutputLen = 128,
    shared_len: Annotated[int, typer.Option("--shared-len", help="Tokens that all prompts begin with, besides.")] = 0,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    seed: Annotated[int, typer.Option("--seed", rich_help_panel="Sampling", help="Row i draws with seed + i.")] = 1,
    repeats: Repeats = 3,
    json: JsonFile = None,
    url: Url = None,
    api_key: ApiKey = None,
    model: options.Model = options.DEFAULT_MODEL,
    *,
    engine: options.EngineOptions,
    max_seqs: options.MaxSeqs = 64,
) -> None:
    """Many sequences at once: output tokens a second, and how long first tokens take."""
    workload = _workload(
        sequences=sequences,
        input_len=input_len,
        output_len=output_len,
        shared_len=shared_len,
        temperature=temperature,
        top_p=1.0 if top_p is None else top_p,
        top_k=top_k or 0,
        min_p=min_p or 0.0,
        seed=seed,
    )
    config = engine.config(model, max_seqs=max_seqs)

    from puna.bench.figures import throughput_of
    from puna.cli.bench_run import open_bench
    from puna.cli.bench_tables import print_throughput

    with _written(json), open_bench(config, url, api_key) as bench:
        runs = bench.run([workload], repeats)[0]
        report = bench.report(workload=workload, throughput=throughput_of(workload, runs))
    _finish(report, json)
    print_throughput(report)


@app.command()
@takes_groups
def prefill(
    lengths: Annotated[
        str, typer.Option("--lengths", "-l", help="Tokens of the prompts, as 128,512.")
    ] = "128,512,2048",
    repeats: Repeats = 5,
    json: JsonFile = None,
    url: Url = None,
    api_key: ApiKey = None,
    model: options.Model = options.DEFAULT_MODEL,
    *,
    engine: options.EngineOptions,
) -> None:
    """Reading prompts: tokens a second until the first token of the answer, by length."""
    try:
        wanted = [int(part) for part in lengths.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{lengths!r} is not a list of numbers as 128,512", param_hint="--lengths") from None
    workloads = [_workload(named="lengths", input_len=length, output_len=1) for length in wanted]
    config = engine.config(model)

    from puna.bench.figures import prefill_of
    from puna.cli.bench_run import open_bench
    from puna.cli.bench_tables import print_prefill

    with _written(json), open_bench(config, url, api_key) as bench:
        all_runs = bench.run(workloads, repeats)
        report = bench.report(prefill=[prefill_of(length, runs) for length, runs in zip(wanted, all_runs, strict=True)])
    _finish(report, json)
    print_prefill(report)


@app.command()
@takes_groups
def kernels(
    json: JsonFile = None,
    model: options.Model = options.DEFAULT_MODEL,
    *,
    engine: options.CoreOptions,
) -> None:
    """Every native kernel at the model's shapes, beside the limits of this machine, measured in the same run."""
    config = engine.config(model)

    from puna.cli.bench_run import run_kernels
    from puna.cli.bench_tables import print_kernels

    with _written(json):
        report = run_kernels(config)
    _finish(report, json)
    print_kernels(report)


@app.command()
def layouts(
    types: Annotated[str, typer.Option("--types", help="Types of weights, as Q4_K,Q6_K; all of them by default.")] = "",
    rows: Annotated[str, typer.Option("--rows", help="Rows that are multiplied at once.")] = "1,16,512",
    json: JsonFile = None,
    threads: options.Threads = 0,
    isa: options.Isa = "auto",
) -> None:
    """Products with types of weights that have a layout of their own, beside their bounds; needs no model."""
    from puna.bench.layouts import FACTORS_AT, MOST_ROWS

    wanted = [name.strip().upper() for name in types.split(",")] if types else list(FACTORS_AT)
    for name in wanted:
        if name not in FACTORS_AT:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(FACTORS_AT)}", param_hint="--types")
    counts = [int(part) if part.strip().isdecimal() else 0 for part in rows.split(",")]
    if not all(1 <= count <= MOST_ROWS for count in counts):
        raise typer.BadParameter(f"{rows!r} is no list of numbers from 1 to {MOST_ROWS}", param_hint="--rows")

    from puna.cli.bench_run import run_layouts
    from puna.cli.bench_tables import print_layouts

    with _written(json):
        report = run_layouts(wanted, counts, threads, isa)
    _finish(report, json)
    print_layouts(report)


@app.command()
@takes_groups
def steps(
    json: JsonFile = None,
    model: options.Model = options.DEFAULT_MODEL,
    *,
    engine: options.EngineOptions,
) -> None:
    """What steps of this machine take with a model, for `puna simulate --steps FILE`."""
    config = engine.config(model)

    from puna.cli.bench_run import run_steps
    from puna.cli.bench_tables import print_steps

    with _written(json):
        times, machine = run_steps(config)
    _finish(times, json)
    print_steps(times, machine)


def _workload(*, named: str | None = None, **fields: float) -> Workload:
    """Wrong usage (exit code 2) where a field is out of range; `named` is the option, where not the field's name."""
    from puna.bench.workload import Workload

    try:
        workload = Workload(**fields)  # type: ignore[arg-type]
        workload.params(0)
    except InputError as error:
        raise options.wrong_usage(InputError(str(error), param=named or error.param)) from None
    return workload


@contextmanager
def _written(path: Path | None) -> Iterator[None]:
    """Finds out before minutes of measuring whether the file can be written."""
    if path is not None:
        try:
            path.open("ab").close()
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error
    yield


def _finish(report: Report | KernelReport | LayoutReport | StepTime, path: Path | None) -> None:
    if path is not None:
        import msgspec

        path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
