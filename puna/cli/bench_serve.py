"""`puna bench serve`: a load on a server that runs, ours or another one, and what its clients would have felt.

Parses, runs, prints; loads are in puna/bench/load.py, figures in puna/bench/load_figures.py. One run: percentiles are
over its requests.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from puna.cli import options
from puna.cli.plain import plain
from puna.errors import InputError

if TYPE_CHECKING:
    from puna.bench.load import Load
    from puna.bench.load_figures import Distribution, LoadReport

_LOAD, _SHAPE = "Load: one of these", "Shape"


def serve(
    url: Annotated[str, typer.Argument(help="The server, as http://HOST:PORT.")] = "http://127.0.0.1:8000",
    clients: Annotated[
        int | None, typer.Option("--clients", "-c", rich_help_panel=_LOAD, help="Each asks, waits, asks again. [8]")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", rich_help_panel=_LOAD, help="Requests a second, at random (Poisson).")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", rich_help_panel=_LOAD, help="Replay this file: see docs/serving.md.")
    ] = None,
    requests: Annotated[
        int | None, typer.Option("--requests", "-n", help="So many (sessions, with --turns). [64, or the whole trace]")
    ] = None,
    input_len: Annotated[int, typer.Option("--input-len", "-i", rich_help_panel=_SHAPE, help="Prompt, tokens.")] = 128,
    output_len: Annotated[
        int, typer.Option("--output-len", "-o", rich_help_panel=_SHAPE, help="Answer, tokens.")
    ] = 128,
    spread: Annotated[
        float, typer.Option("--spread", rich_help_panel=_SHAPE, help="Log-normal lengths with this sigma, as 0.8.")
    ] = 0.0,
    shared_len: Annotated[
        int, typer.Option("--shared-len", rich_help_panel=_SHAPE, help="Tokens that prompts begin with in common.")
    ] = 0,
    groups: Annotated[
        int, typer.Option("--groups", rich_help_panel=_SHAPE, help="So many different common beginnings.")
    ] = 1,
    turns: Annotated[int, typer.Option("--turns", rich_help_panel=_SHAPE, help="Of each conversation.")] = 1,
    think: Annotated[
        float, typer.Option("--think", rich_help_panel=_SHAPE, help="Seconds between an answer and the next turn.")
    ] = 0.0,
    endpoint: Annotated[
        Literal["completions", "chat"] | None,
        typer.Option("--endpoint", rich_help_panel=_SHAPE, help="[completions, or chat where there are turns]"),
    ] = None,
    speed: Annotated[
        float, typer.Option("--speed", rich_help_panel=_SHAPE, help="Of a trace's clock: 2 is twice as fast.")
    ] = 1.0,
    length_scale: Annotated[
        float, typer.Option("--length-scale", rich_help_panel=_SHAPE, help="Of a trace's lengths.")
    ] = 1.0,
    max_len: Annotated[
        int | None, typer.Option("--max-len", rich_help_panel=_SHAPE, help="Cut prompt and answer to fit into this.")
    ] = None,
    temperature: options.Temperature = 0.0,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos/--no-ignore-eos", help="Ask for answers of exactly the length.")
    ] = True,
    seed: Annotated[int, typer.Option("--seed", help="The same seed, the same load.")] = 1,
    skip_first: Annotated[bool, typer.Option("--skip-first", help="Leave each client's first request out.")] = False,
    slo: Annotated[
        str | None, typer.Option("--slo", help="What is good, in seconds: ttft=0.5,tpot=0.05,e2e=10.")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds for one request.")] = 900.0,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write everything, each request too, to this file.")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw it to this PNG or SVG.")] = None,
    api_key: Annotated[str | None, typer.Option("--api-key", envvar="PUNA_API_KEY", help="The server's key.")] = None,
) -> None:
    """A server under load: first tokens, gaps, whole answers, goodput, errors."""
    load = _load(
        clients=8 if (clients, rate, trace) == (None, None, None) else clients,
        rate=rate,
        trace=trace,
        sessions=requests if requests is not None or trace is not None else 64,
        input_len=input_len,
        output_len=output_len,
        spread=spread,
        shared_len=shared_len,
        groups=groups,
        turns=turns,
        think_s=think,
        speed=speed,
        length_scale=length_scale,
        max_len=max_len,
        skip_first=skip_first,
        endpoint=endpoint or ("chat" if turns > 1 else "completions"),
        temperature=temperature,
        ignore_eos=ignore_eos,
        seed=seed,
    )

    from puna.bench.load_figures import LoadReport, examples_of, figures_of, parse_objective

    try:
        objective = None if slo is None else parse_objective(slo)
    except InputError as error:
        raise options.wrong_usage(error) from None
    for path in (json, plot):
        _check_writable(path)

    from puna.bench.figures import Target
    from puna.bench.load import sessions
    from puna.bench.load_run import run_load
    from puna.bench.machine import MachineWatch
    from puna.bench.online import find_server

    planned = sessions(load)
    server = find_server(url, api_key)
    watch = MachineWatch()
    run = run_load(server, load, planned, timeout)
    report = LoadReport(
        target=Target(model=server.model, url=url),
        machine=watch.report(),
        load=load,
        figures=figures_of(run, objective),
        examples=examples_of(run),
        cut=sum(session.was_cut for session in planned),
        exchanges=run.exchanges,
    )
    if json is not None:
        import msgspec

        json.write_bytes(msgspec.json.encode(report, enc_hook=str) + b"\n")
    if plot is not None:
        from puna.bench.load_plot import plot as draw

        draw(report, plot)
    _print(report)
    if not report.figures.requests:
        raise typer.Exit(1)


def _load(**fields: Any) -> Load:
    from puna.bench.load import Load

    try:
        return Load(**fields)
    except InputError as error:
        named = {"sessions": "requests", "think_s": "think"}.get(str(error.param), error.param)
        raise options.wrong_usage(InputError(str(error), param=named)) from None


def _check_writable(path: Path | None) -> None:
    """Before minutes of measuring."""
    if path is not None:
        try:
            path.open("ab").close()
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error


def _print(report: LoadReport) -> None:
    from rich.table import Table
    from rich.text import Text

    from puna.cli.bench_tables import print_machine, report_console

    figures, console = report.figures, report_console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("milliseconds")
    for column in ("mean", "p50", "p90", "p99", "most"):
        table.add_column(column, justify="right")
    rows = {
        "first token": figures.first_s,
        "between tokens, mean of a request": figures.token_s,
        "between pieces of text": figures.gap_s,
        "whole answer": figures.whole_s,
    }
    for name, values in rows.items():
        if values is not None:
            table.add_row(name, *_milliseconds(values))
    console.print(table)
    console.print()
    console.print(
        f"{figures.requests} requests in {figures.wall_s:.1f} s, {figures.requests_per_s:.2f} a second; "
        f"{figures.output_tokens_per_s:,.0f} tokens a second out; prompts of {figures.prompt_tokens:,} tokens, "
        f"{figures.cached_tokens:,} of them from the cache"
    )
    if figures.goodput is not None:
        wanted = ", ".join(f"{name} {seconds:g} s" for name, seconds in figures.goodput.objective.items())
        console.print(f"goodput ({wanted}): {figures.goodput.share:.1%}, {figures.goodput.requests_per_s:.2f} a second")
    if report.cut:
        console.print(f"{report.cut} requests were cut to --max-len {report.load.max_len}")
    for kind, count in figures.errors.items():
        console.print(Text(f"failed: {count} x {kind}: {plain(report.examples[kind], 200)}"), style="yellow")
    generator = figures.generator
    late = "" if generator.late_s is None else f", it sent up to {1e3 * generator.late_s.high:.1f} ms late"
    console.print(
        f"the generator took {generator.processor_share:.0%} of a core, {generator.processor_us_per_token:.0f} "
        f"microseconds a token{late}"
    )
    what = f"{plain(report.target.model)} at {plain(report.target.url or '')}: {_described(report.load)}"
    print_machine(console, report.machine, what, with_server=True)


def _described(load: Load) -> str:
    if load.clients is not None:
        when = f"{load.clients} clients in a closed loop"
    elif load.rate is not None:
        when = f"{load.rate:g} requests a second at random"
    else:
        when = f"{load.trace} at {load.speed:g} times its speed"
    return f"{when}, {load.endpoint}"


def _milliseconds(values: Distribution) -> list[str]:
    return [f"{1e3 * value:,.1f}" for value in (values.mean, values.p50, values.p90, values.p99, values.high)]
