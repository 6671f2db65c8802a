"""Prints an answer while it is computed, and what it cost when it is done.

The answer goes to standard output as it comes; marks and figures go to standard error where output is no terminal.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from puna.cli.interrupt import Interrupt
from puna.cli.plain import plain
from puna.models.calls.pieces import CallArguments, CallStart, Content, Piece, Reasoning

if TYPE_CHECKING:
    from puna.cli.local import LocalModel
    from puna.engine.params import SamplingParams
    from puna.engine.prompts import Prompt
    from puna.models.calls.pieces import PieceReader


@dataclass(frozen=True)
class Answer:
    """An answer and its figures. `text` is what was printed, also where it was interrupted."""

    text: str
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    first_token_s: float
    total_s: float
    interrupted: bool
    finish_reason: str
    seed: int | None
    calls: list[Call] = field(default_factory=list)


@dataclass
class Call:
    """Of a tool. `arguments`: their JSON text."""

    name: str
    arguments: str = ""


def print_answer(
    local: LocalModel, prompt: Prompt, params: SamplingParams, reader: PieceReader | None = None
) -> Answer:
    """Streams to standard output until the answer ends or Ctrl-C is pressed. What the prompt lost comes first. With a
    `reader` reasoning goes to standard error, dimmed, and calls are printed a line each."""
    begun = time.perf_counter()
    prompt_ids = prompt.token_ids
    if prompt.truncated_tokens:
        whole = len(prompt_ids) + prompt.truncated_tokens
        print(dim(f"[cut: the model reads {len(prompt_ids)} of the prompt's {whole} tokens]"), file=sys.stderr)
    pieces: list[str] = []
    tokens, cached, first_token_s, reason = 0, 0, 0.0, "abort"
    seed: int | None = None
    calls: list[Call] = []
    shown = frozenset() if reader is None else local.shown_tokens()
    with Interrupt() as interrupt:
        for delta in local.answer(prompt_ids, params, stop=lambda: interrupt.asked, shown=shown):
            if not tokens:
                first_token_s = time.perf_counter() - begun
            tokens += len(delta.token_ids)
            cached = delta.cached_tokens or cached
            seed = seed if delta.seed is None else delta.seed
            reason = delta.finish_reason or reason
            _print(delta.text if reader is None else _content(reader.feed(delta.text), calls), pieces)
    if reader is not None:
        _print(_content(reader.end(), calls), pieces)
    text = "".join(pieces)
    if reason == "abort":
        _mark("interrupted", text)
    elif reason == "length":
        full = len(prompt_ids) + tokens >= local.context_tokens
        _mark(f"cut: the context of {local.context_tokens} tokens is full" if full else "cut at the token limit", text)
    if not text.endswith("\n") and (text or not calls):
        print(flush=True)
    for call in calls:
        print(f"call: {plain(call.name)} {plain(call.arguments)}", flush=True)
    total_s = time.perf_counter() - begun
    return Answer(text, len(prompt_ids), cached, tokens, first_token_s, total_s, reason == "abort", reason, seed, calls)


def _print(text: str, pieces: list[str]) -> None:
    if text:
        pieces.append(text)
        sys.stdout.write(text)
        sys.stdout.flush()


def _content(said: list[Piece], calls: list[Call]) -> str:
    """The content among pieces; what else there is goes where it belongs."""
    content = ""
    for piece in said:
        match piece:
            case Content():
                content += piece.text
            case Reasoning():
                sys.stdout.flush()
                print(dim(plain(piece.text)), end="", file=sys.stderr, flush=True)
            case CallStart():
                calls.append(Call(piece.name))
            case CallArguments():
                calls[piece.index].arguments += piece.text
    return content


def print_stats(answer: Answer) -> None:
    decoding_s = answer.total_s - answer.first_token_s
    speed = f"{(answer.tokens - 1) / decoding_s:.1f} tokens/s" if answer.tokens > 1 and decoding_s > 0 else "-"
    seed = "" if answer.seed is None else f"; seed {answer.seed}"
    line = (
        f"[{answer.tokens} tokens, {speed}, first after {answer.first_token_s * 1000:.0f} ms; "
        f"prompt {answer.prompt_tokens}, of which {answer.cached_tokens} from the cache{seed}]"
    )
    print(dim(line), file=sys.stderr)


def dim(text: str) -> str:
    return f"\x1b[2m{text}\x1b[0m" if sys.stderr.isatty() else text


def _mark(what: str, text: str) -> None:
    """Where a person reads, the mark stands behind the answer; a program's output stays the answer alone."""
    if sys.stdout.isatty():
        sys.stdout.write(f" \x1b[2m[{what}]\x1b[0m")
        sys.stdout.flush()
    else:
        sys.stdout.flush()
        print(f"{'' if text.endswith(chr(10)) or not sys.stderr.isatty() else chr(10)}[{what}]", file=sys.stderr)
