"""`puna chat`: one question, piped text, and the conversation at a terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.process import COMMAND, ROOT, Terminal, puna


def options(model: Path) -> list[str]:
    return ["-m", str(model), "--backend", "reference"]


@pytest.fixture
def terminal(tiny_model: Path) -> Iterator[Terminal]:
    opened = Terminal("chat", *options(tiny_model), "--max-tokens", "8")
    opened.wait_for(">>> ")
    yield opened
    opened.kill()


def test_one_question_has_one_answer_and_nothing_else_on_stdout(tiny_model: Path) -> None:
    done = puna("chat", "hello llama", *options(tiny_model), "--max-tokens", "8")
    assert done.returncode == 0
    assert done.stdout.endswith("\n")
    assert "\x1b" not in done.stdout
    assert "tokens/s" not in done.stdout
    again = puna("chat", "hello", "llama", *options(tiny_model), "--max-tokens", "8", "--stats")
    assert again.stdout == done.stdout
    assert "tokens" in again.stderr
    assert "8 tokens" in again.stderr


def test_piped_text_is_the_question_or_stands_below_it(tiny_model: Path) -> None:
    base = [*options(tiny_model), "--max-tokens", "8"]
    asked = puna("chat", "first\n\nsecond", *base)
    assert puna("chat", *base, stdin="first\n\nsecond\n").stdout == asked.stdout
    assert puna("chat", "first", *base, stdin="second\n").stdout == asked.stdout


@pytest.mark.parametrize("stdin", ["", "  \n"])
def test_an_empty_question_is_refused(tiny_model: Path, stdin: str) -> None:
    done = puna("chat", *options(tiny_model), stdin=stdin)
    assert done.returncode == 1
    assert "question is empty" in done.stderr


def test_piped_bytes_that_are_no_text_are_refused(tiny_model: Path) -> None:
    done = puna("chat", *options(tiny_model), stdin=b"\xff\xfe")
    assert done.returncode == 1
    assert "UTF-8" in done.stderr


def test_a_question_that_the_context_cannot_hold_is_said_with_numbers(tiny_model: Path) -> None:
    done = puna("chat", "z" * 500, *options(tiny_model))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "256" in done.stderr


def test_ctrl_c_keeps_what_was_answered_and_exits_with_130(patient_model: Path) -> None:
    command = [*COMMAND, "chat", "hello", *options(patient_model)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stderr is not None
    first = os.read(process.stdout.fileno(), 1)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    rest, marks = process.stdout.read(), process.stderr.read().decode()
    assert process.wait(timeout=60) == 130
    assert len(first + rest) > 10
    assert "[interrupted]" in marks
    assert "Traceback" not in marks
    process.stdout.close()
    process.stderr.close()


def test_a_conversation_goes_on_and_its_beginning_is_cached(terminal: Terminal) -> None:
    assert "of which 0 from the cache" in terminal.ask("hello llama and all of you that are with us")
    second = terminal.ask("and you")
    assert "from the cache" in second
    assert "of which 0 from the cache" not in second
    terminal.type("/exit")
    assert terminal.exit_code() == 0


def test_undo_takes_a_turn_back_and_reset_all(terminal: Terminal) -> None:
    empty = terminal.ask("/tokens")
    terminal.ask("hello")
    one = terminal.ask("/tokens")
    terminal.ask("you")
    assert terminal.ask("/tokens") != one
    assert "took back: you" in terminal.ask("/undo")
    assert terminal.ask("/tokens") == one
    terminal.ask("/reset")
    assert terminal.ask("/tokens") == empty
    assert "nothing to undo" in terminal.ask("/undo")


def test_a_system_message_stays_through_a_reset(terminal: Terminal) -> None:
    terminal.ask("/system be brief")
    with_system = terminal.ask("/tokens")
    terminal.ask("hello")
    terminal.ask("/reset")
    assert terminal.ask("/tokens") == with_system
    terminal.ask("/system")
    assert "\n0 tokens of 256" in terminal.ask("/tokens")


def test_parameters_can_be_seen_and_set_and_wrong_ones_are_refused(terminal: Terminal) -> None:
    assert "temperature = 0.7" in terminal.ask("/set temperature 0.7")
    assert "0.7" in terminal.ask("/params")
    assert "max_tokens = None" in terminal.ask("/set max_tokens none")
    assert "stop = 'END'" in terminal.ask("/set stop END")
    assert "error: temperature" in terminal.ask("/set temperature hot")
    assert "error: top_p" in terminal.ask("/set top_p 7")
    assert "error" in terminal.ask("/set nonsense 1")
    assert "error" in terminal.ask("/set n 2")
    assert "0.7" in terminal.ask("/params")


def test_retry_answers_the_same_question_again(terminal: Terminal) -> None:
    assert "no question" in terminal.ask("/retry")
    terminal.ask("hello")
    one = terminal.ask("/tokens")
    assert "tokens" in terminal.ask("/retry")
    assert terminal.ask("/tokens") == one


def test_a_conversation_can_be_saved_and_loaded(terminal: Terminal, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    terminal.ask("hello llama")
    before = terminal.ask("/tokens")
    assert "saved" in terminal.ask(f"/save {path}")
    saved = json.loads(path.read_text())
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"]
    terminal.ask("/reset")
    assert "2 messages" in terminal.ask(f"/load {path}")
    assert terminal.ask("/tokens") == before
    path.write_text('{"format": "something else"}')
    assert "error" in terminal.ask(f"/load {path}")
    assert terminal.ask("/tokens") == before
    assert "error" in terminal.ask(f"/load {tmp_path}/nothing.json")
    assert "error" in terminal.ask("/save /nowhere/at/all.json")


def test_unknown_commands_are_refused_and_help_lists_the_known(terminal: Terminal) -> None:
    assert "there is no /nonsense" in terminal.ask("/nonsense")
    assert "nonsense cannot be set" in terminal.ask("/set nonsense 1")
    assert "/set temperature VALUE" in terminal.ask("/set temperature")
    listed = terminal.ask("/help")
    names = ("/help", "/reset", "/system", "/save", "/load", "/params", "/set", "/retry", "/undo", "/tokens", "/exit")
    assert all(name in listed for name in names)


def test_a_conversation_that_outgrows_the_context_says_so_and_goes_on(terminal: Terminal) -> None:
    terminal.ask("/tokens")
    answer = terminal.ask("z" * 300)
    assert "256" in answer
    assert "/reset" in answer
    assert "\n0 tokens of" in terminal.ask("/tokens")
    assert "tokens" in terminal.ask("hello")


def test_ctrl_c_stops_an_answer_but_not_the_conversation(patient_model: Path) -> None:
    terminal = Terminal("chat", *options(patient_model), "--max-tokens", "16000")
    try:
        terminal.wait_for(">>> ")
        terminal.type("hello")
        terminal.wait_for("hello\n")
        terminal.press_ctrl_c()
        terminal.wait_for("[interrupted]")
        terminal.wait_for(">>> ")
        assert "\n0 tokens of" not in terminal.ask("/tokens")
        terminal.press_ctrl_c()
        terminal.wait_for("once more")
        terminal.wait_for(">>> ")
        terminal.press_ctrl_c()
        assert terminal.exit_code() == 130
    finally:
        terminal.kill()


def test_ctrl_c_in_the_middle_of_a_command_keeps_the_conversation(terminal: Terminal, tmp_path: Path) -> None:
    terminal.ask("hello")
    os.mkfifo(tmp_path / "pipe")
    terminal.type(f"/load {tmp_path / 'pipe'}")
    terminal.wait_for("pipe\n")
    terminal.press_ctrl_c()  # it waits for a writer, and none will come
    terminal.wait_for("once more")
    terminal.wait_for(">>> ")
    assert "took back: hello" in terminal.ask("/undo")


def test_ctrl_d_leaves(terminal: Terminal) -> None:
    terminal.press_ctrl_d()
    assert terminal.exit_code() == 0


def test_a_question_that_is_too_long_is_cut_where_that_is_asked_for_and_it_is_said(tiny_model: Path) -> None:
    done = puna("chat", "z" * 500, *options(tiny_model), "--max-tokens", "8", "--truncate-prompt-tokens", "-1")
    assert done.returncode == 0, done.stderr
    said = next(line for line in done.stderr.splitlines() if "cut" in line)
    assert re.search(r"\[cut: the model reads 2[34]\d of the prompt's 5\d\d tokens\]", said)
    assert "cut: the model" not in done.stdout


def test_a_conversation_goes_on_without_its_oldest_turns_where_that_is_asked_for(terminal: Terminal) -> None:
    terminal.ask("/system be brief")
    terminal.ask("z" * 180)
    assert "/set truncate_prompt_tokens -1" in terminal.ask("x" * 100)
    terminal.ask("/set truncate_prompt_tokens -1")
    assert "[cut: the model reads" in terminal.ask("x" * 100)
    assert "more are cut)" in terminal.ask("/tokens")
    terminal.ask("/reset")
    assert "[cut: the model" not in terminal.ask("hello")


def test_an_answer_that_fills_the_context_says_that_this_ended_it(tiny_model: Path) -> None:
    full = puna("chat", "z" * 200, *options(tiny_model), "--max-tokens", "1")
    assert "[cut at the token limit]" in full.stderr
    assert "[cut: the context of 256 tokens is full]" in puna("chat", "z" * 200, *options(tiny_model)).stderr
