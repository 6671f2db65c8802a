"""`puna chat`: one question and its answer, or a conversation.

It decides where the question comes from and where the answer goes; the conversation itself is in repl.py.
"""

from __future__ import annotations

import os
import select
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from puna.cli import options
from puna.cli.option_group import takes_groups
from puna.errors import InputError

if TYPE_CHECKING:
    from puna.cli.local import LocalModel
    from puna.engine.params import SamplingParams
    from puna.models.calls.tool import Tool

STDIN_NOTICE_S = 1.0
DEFAULT_MAX_TOKENS = 1024


@takes_groups
def chat(
    question: Annotated[
        list[str] | None,
        typer.Argument(help="Asked once, then the command ends. Without it: a conversation, or what is piped in."),
    ] = None,
    model: options.Model = options.DEFAULT_MODEL,
    system: Annotated[
        str | None, typer.Option("--system", "-s", help="A system message: how the model should answer.")
    ] = None,
    tools: Annotated[
        Path | None,
        typer.Option("--tools", help="JSON list of tools; you see the calls and answer them."),
    ] = None,
    *,
    sampling: options.SamplingOptions,
    stats: Annotated[bool, typer.Option("--stats", help="Tokens a second, on standard error.")] = False,
    engine: options.EngineOptions,
    record: options.Record = None,
) -> None:
    """Talk with a model: one question (`puna chat "What is the capital of France?"`) or a conversation.

    Piped text is the question, or is added below it: `cat notes.txt | puna chat "Summarise this:"`.

    Without --max-tokens an answer has 1024 tokens at most, or what the context leaves.
    """
    params = sampling.params()
    known = _read_tools(tools)
    config = engine.config(model, record=record, max_seqs=1)
    asked = _question(" ".join(question) if question else None)

    from puna.cli.local import LocalModel

    with LocalModel.open(config, DEFAULT_MAX_TOKENS) as local:
        if asked is None:
            from puna.cli.repl import Repl

            Repl(local, model, params, system, known).run()
        else:
            _answer_once(local, asked, system, params, stats, known)


def _read_tools(path: Path | None) -> list[Tool]:
    if path is None:
        return []
    from puna.cli.tools_file import read_tools

    return read_tools(path)


def _answer_once(
    local: LocalModel, question: str, system: str | None, params: SamplingParams, stats: bool, tools: list[Tool]
) -> None:
    from puna.cli.conversation import Conversation
    from puna.cli.stream import print_answer, print_stats

    conversation = Conversation()
    conversation.set_system(system or "")
    conversation.ask(question)
    prompt = local.chat_prompt(conversation.as_dicts(), params, tools)
    answer = print_answer(local, prompt, params, local.chat_reader(prompt, tools))
    if stats or sys.stderr.isatty():
        print_stats(answer)
    if answer.interrupted:
        raise KeyboardInterrupt


def _question(question: str | None) -> str | None:
    """What is asked once; None where a person sits at the terminal and asked nothing yet."""
    piped = _piped_text(waits=question is None)
    if question is None and piped is None:
        return None
    asked = "\n\n".join(part for part in (question, piped) if part)
    if not asked.strip():
        raise InputError('the question is empty; try: puna chat "What is the capital of France?"')
    return asked


def _piped_text(*, waits: bool) -> str | None:
    """Standard input, unless it is a terminal. With a question given, only a pipe or a file is read: other kinds
    (a service manager's, say) may never end."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return None
    mode = os.fstat(sys.stdin.fileno()).st_mode
    if not waits and not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode)):
        return None
    if stat.S_ISFIFO(mode) and not select.select([sys.stdin], [], [], STDIN_NOTICE_S)[0]:
        print("reading the question from standard input (Ctrl-D or `< /dev/null` ends it) ...", file=sys.stderr)
    try:
        return sys.stdin.buffer.read().decode().strip()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text (byte {error.start})") from None
