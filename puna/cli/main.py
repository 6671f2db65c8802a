"""The `puna` command: its commands, and how every one of them ends.

A `PunaError` is one red line on standard error and exit code 1 (a traceback with `--debug`); wrong usage exits with 2,
Ctrl-C with 130, a reader that went away (`puna ... | head`) with 141 and no word. Commands import what they need
when they run, so that `puna --help` is quick.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from puna import __version__
from puna.cli import (
    batch,
    bench,
    chat,
    convert,
    doctor,
    generate,
    inspect,
    keys,
    models,
    pull,
    replay,
    serve,
    simulate,
    top,
)
from puna.cli.plain import plain
from puna.errors import PunaError

EXIT_ERROR, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE, EXIT_TERMINATED = 1, 130, 141, 143


class _Commands(TyperGroup):
    """Turns what a command raises into what its caller sees."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except PunaError as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            else:
                print_error(str(error))
            raise typer.Exit(EXIT_ERROR) from None
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            silence_stdout()
            raise typer.Exit(EXIT_BROKEN_PIPE) from None
        except OSError as error:  # a full disk, say
            if ctx.params.get("debug"):
                traceback.print_exc()
            silence_stdout()
            print_error(_described(error))
            raise typer.Exit(EXIT_ERROR) from None


def _described(error: OSError) -> str:
    return str(error) if error.filename else f"cannot read the input or write the output: {error.strerror}"


def print_error(message: str) -> None:
    red, end = ("\x1b[31m", "\x1b[0m") if sys.stderr.isatty() and "NO_COLOR" not in os.environ else ("", "")
    print(f"{red}error: {plain(' '.join(message.splitlines()))}{end}", file=sys.stderr)


def silence_stdout() -> None:
    """What is still buffered goes nowhere, so that the interpreter's own flush at exit does not complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


app = typer.Typer(
    name="puna",
    cls=_Commands,
    help="Run language models on this machine: chat with them, generate in bulk, serve them over HTTP.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"puna {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    del debug, version


app.command("chat")(chat.chat)
app.command("generate")(generate.generate)
app.command("serve")(serve.serve)
app.command("batch")(batch.batch)
app.command("top")(top.top)
app.command("pull")(pull.pull)
app.command("models")(models.models)
app.command("convert")(convert.convert)
app.command("inspect")(inspect.inspect)
app.command("doctor")(doctor.doctor)
app.command("replay")(replay.replay)
app.command("simulate")(simulate.simulate)
app.add_typer(bench.app)
app.add_typer(keys.app)


def main() -> None:
    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    if "--debug" in arguments[:cut]:  # global: it may stand before the command or after it
        arguments = ["--debug", *(a for i, a in enumerate(arguments) if a != "--debug" or i > cut)]
    _open_missing_streams()
    if "reference" not in arguments:  # the only backend that multiplies in NumPy; threads for it cost every start time
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app(arguments, prog_name="puna")
    except OSError as error:  # while the help or the version was printed
        silence_stdout()
        print_error(_described(error))
        sys.exit(EXIT_ERROR)


def _open_missing_streams() -> None:
    """A caller may have closed them; then nothing is said there, and no other file takes their places."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def _terminate(_: int, __: FrameType | None) -> None:
    """Ends as an error would: children are ended too, and half of a pulled model is removed."""
    raise SystemExit(EXIT_TERMINATED)


if __name__ == "__main__":
    main()
