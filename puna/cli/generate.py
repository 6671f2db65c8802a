"""`puna generate`: many prompts in, one JSON object a line out, in the order of the input.

It decides where prompts come from and where records go; running them together is in bulk.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from puna.cli import options
from puna.cli.option_group import takes_groups
from puna.errors import InputError

if TYPE_CHECKING:
    from puna.cli.bulk import Source
    from puna.cli.local import LocalModel
    from puna.engine.params import SamplingParams

DEFAULT_MAX_TOKENS = 256


@takes_groups
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts; each is one line of output.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Text, one prompt a line. - is stdin.")] = None,
    jsonl: Annotated[
        Path | None,
        typer.Option("--jsonl", help="JSON lines with prompt, messages or prompt_token_ids. - is stdin."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: standard output.")] = None,
    model: options.Model = options.DEFAULT_MODEL,
    *,
    sampling: options.SamplingOptions,
    samples: Annotated[
        int,
        typer.Option("--samples", rich_help_panel="Sampling", help="Answers a prompt (with --temperature, or beams)."),
    ] = 1,
    best_of: options.BestOf = None,
    beam_width: options.BeamWidth = None,
    length_penalty: options.LengthPenalty = 1.0,
    early_stopping: options.EarlyStopping = "false",
    engine: options.EngineOptions,
    max_seqs: options.MaxSeqs = 64,
    record: options.Record = None,
) -> None:
    """Complete many prompts at once. A line that cannot be run becomes a record with `error`, and the exit code 1.

    Without --max-tokens an answer has 256 tokens at most, or what the context leaves.

    A JSONL line may carry an `id` and sampling parameters of its own, which replace those given here:
    {"id": 7, "messages": [{"role": "user", "content": "Hi"}], "temperature": 0.8}
    """
    if sum(bool(given) for given in (prompts, file, jsonl)) != 1:
        raise typer.BadParameter("give prompts, or --file, or --jsonl: exactly one of them")
    if prompts and "" in prompts:
        raise typer.BadParameter(f"prompt {prompts.index('') + 1} is empty", param_hint="prompts")
    params = sampling.params(
        n=samples,
        best_of=best_of,
        beam_width=beam_width,
        length_penalty=length_penalty,
        early_stopping={"true": True, "false": False}.get(early_stopping, early_stopping),
    )
    config = engine.config(
        model,
        max_seqs=max_seqs,
        record=record,
    )

    from puna.cli.bulk import run_all
    from puna.cli.local import LocalModel

    with ExitStack() as stack:
        opened = _open(stack, file or jsonl, "rb") if file or jsonl else None
        target = _open(stack, output, "wb") if output else sys.stdout.buffer
        local = stack.enter_context(LocalModel.open(config, DEFAULT_MAX_TOKENS))
        lines = _lines(local, prompts, opened, params, as_json=jsonl is not None)
        summary = run_all(local, lines, target)
    print(summary, file=sys.stderr)
    if summary.interrupted:
        raise KeyboardInterrupt
    if summary.failed:
        raise typer.Exit(1)


def _lines(
    local: LocalModel, prompts: list[str] | None, opened: IO[bytes] | None, params: SamplingParams, *, as_json: bool
) -> Source:
    from puna.cli.records import json_lines, text_lines

    if opened is None:
        return text_lines(local, enumerate(prompts or (), 1), params)
    return json_lines(local, opened, params) if as_json else text_lines(local, _text(opened), params)


def _text(opened: IO[bytes]) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    for number, line in enumerate(opened, 1):
        if line.strip():
            yield number, line.decode("utf-8", "surrogateescape").rstrip("\r\n")


def _open(stack: ExitStack, path: Path | None, mode: str) -> IO[bytes]:
    assert path is not None
    if str(path) == "-":
        return sys.stdin.buffer if mode == "rb" else sys.stdout.buffer
    try:
        opened: IO[bytes] = stack.enter_context(path.open(mode))
    except OSError as error:
        raise InputError(f"cannot {'read' if mode == 'rb' else 'write'} {path}: {error.strerror}") from error
    return opened
