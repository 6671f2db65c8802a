"""`puna serve`: an OpenAI-shaped HTTP server on this machine."""

from __future__ import annotations

import re
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated, Literal

import typer

from puna.cli import options
from puna.cli.config_file import read_config
from puna.cli.option_group import shows, takes_groups
from puna.cli.tenancy import LimitOptions, key_sources


def default_state(name: str) -> Path:
    """One folder a model's name, beside the models."""
    from puna.models.store import models_home

    return models_home().parent / "serve" / (re.sub(r"[^A-Za-z0-9._-]+", "-", name)[-80:].strip(".-") or "model")


@shows(
    "model", "model_option", "host", "port", "name", "config", "api_key", "keys", "max_model_len", "kv_gib", "max_seqs"
)
@takes_groups
def serve(
    model: Annotated[
        str | None, typer.Argument(help="The model to serve. Default: smollm2.", show_default=False)
    ] = None,
    model_option: options.Model = options.DEFAULT_MODEL,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", "-p", min=0, max=65535, help="0 takes a free port, and prints it.")
    ] = 8000,
    name: Annotated[
        list[str] | None, typer.Option("--name", help="What clients call the model. May be repeated.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", callback=read_config, is_eager=True, help="TOML file of options, by the same names."),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar="PUNA_API_KEY", help="Clients must send it as a bearer token.")
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option("--keys", help="File of keys that name tenants (puna keys); read again when it changes."),
    ] = None,
    max_body_mb: Annotated[int, typer.Option("--max-body-mb", min=1, max=1024, help="Largest request body.")] = 16,
    max_connections: Annotated[
        int,
        typer.Option("--max-connections", min=1, max=1 << 20, help="Open connections; more get a 503."),
    ] = 4096,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option("--cors-origin", help="Origin whose pages may ask from a browser; * for all. Repeat it."),
    ] = None,
    drain: Annotated[
        float,
        typer.Option("--drain", min=0, max=86400, help="Seconds that running answers have when the server stops."),
    ] = 5.0,
    hang: Annotated[
        float,
        typer.Option("--hang", min=2, max=3600, help="Seconds without movement after which an engine is replaced."),
    ] = 10.0,
    dialect: Annotated[
        Literal["openai", "vllm", "llamacpp"],
        typer.Option("--dialect", help="Whose shapes to follow where servers of this API contradict each other."),
    ] = "openai",
    strict: Annotated[
        bool, typer.Option(help="Refuse unknown parameters, instead of naming them in the header puna-ignored.")
    ] = False,
    metrics_names: Annotated[
        Literal["puna", "vllm"], typer.Option("--metrics-names", help="Whose names /metrics gives its figures.")
    ] = "puna",
    tool_format: Annotated[
        str,
        typer.Option("--tool-format", help="How the model writes calls of tools: auto (its template tells) or a name."),
    ] = "auto",
    reasoning_format: Annotated[
        str, typer.Option("--reasoning-format", help="How it marks its reasoning: auto, none (do not split) or a name.")
    ] = "auto",
    store_mb: Annotated[
        int, typer.Option("--store-mb", min=0, max=65536, help="Room for stored responses; 0 stores none.")
    ] = 64,
    state: Annotated[
        Path | None,
        typer.Option("--state", help="Folder for files and batches. Default: one a model name, in Puna's home."),
    ] = None,
    log_format: Annotated[
        Literal["text", "json"], typer.Option("--log-format", help="Of the log on standard error: a line a request.")
    ] = "text",
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option("--log-level", help="What is worth a line.")
    ] = "info",
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Log the prompts' text, too.")] = False,
    otlp: Annotated[
        str | None,
        typer.Option("--otlp", help="Send a span a request to this OpenTelemetry collector, over HTTP: .../v1/traces"),
    ] = None,
    *,
    limits: LimitOptions,
    engine: options.EngineOptions,
    max_seqs: options.MaxSeqs = 64,
    max_waiting: Annotated[
        int, typer.Option("--max-waiting", rich_help_panel="Engine", help="Requests that may wait; more get a 429.")
    ] = 1024,
    policy: Annotated[str, typer.Option("--policy", rich_help_panel="Engine", help="fcfs or priority.")] = "fcfs",
    record: options.Record = None,
) -> None:
    """Serve a model over HTTP, in OpenAI's shapes, until Ctrl-C.

    These are the options that most need. docs/serving.md has all; each can stand here or in the file of --config.
    """
    wanted = model or model_option
    if "" in (name or ()):
        raise typer.BadParameter("a name cannot be empty", param_hint="--name")
    del config  # its values are in all others
    settled = engine.config(
        wanted,
        max_seqs=max_seqs,
        max_waiting_seqs=max_waiting,
        policy=policy,
        record=record,
    )

    from puna.cli.progress import PullProgress, loading
    from puna.models.calls.formats import CALL_FORMATS, REASONING_FORMATS
    from puna.models.names import resolve
    from puna.server.heap import share_heaps
    from puna.server.logs import start_logging
    from puna.server.options import ServeOptions
    from puna.server.serve import run

    with PullProgress() as progress:
        resolve(wanted, progress=progress)
    sources = key_sources(api_key, keys, limits)
    serving = ServeOptions(
        names=tuple(name or [wanted]),
        host=host,
        port=port,
        keys=sources,
        max_body_bytes=max_body_mb << 20,
        max_connections=max_connections,
        cors_origins=tuple(cors_origin or ()),
        drain_s=drain,
        hang_s=hang,
        dialect=dialect,
        strict=strict,
        metrics_names=metrics_names,
        store_bytes=store_mb << 20,
        state=state or default_state((name or [wanted])[0]),
        log_prompts=log_prompts,
        tool_format=_one_of("--tool-format", tool_format, CALL_FORMATS),
        reasoning_format=_one_of("--reasoning-format", reasoning_format, REASONING_FORMATS),
        otlp=otlp,
    )
    if not sources.given and keys is None and host not in ("127.0.0.1", "::1", "localhost"):
        print(f"anyone who can reach {host} can use this server; --api-key or --keys ask for one", file=sys.stderr)
    share_heaps()  # before the log has its thread
    with closing(start_logging(log_format, log_level)), ExitStack() as waiting:
        waiting.enter_context(loading(wanted))

        def announce(line: str) -> None:
            waiting.close()
            print(line, flush=True)

        run(settled, serving, announce=announce)


def _one_of(option: str, name: str, known: tuple[str, ...]) -> str:
    if name not in known:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}", param_hint=option)
    return name
