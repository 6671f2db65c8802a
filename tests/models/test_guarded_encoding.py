"""Expressions of a stranger's in tokenizer.json: the same ids as ever, and an end to those that never end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from puna.errors import InputError, ModelFileError
from puna.models import guarded_encoding
from puna.models.encoders import LibraryEncoder
from puna.models.guarded_encoding import GuardedEncoder, unknown_expression
from puna.models.pretokenizers import _SPACES_AT_THE_END, PRE_TOKENIZERS
from puna.models.tokenizer import Tokenizer
from tests.models.small_tokenizers import folder_tokenizer, sentencepiece_bpe

ENDLESS = r"(a+)+$"  # each of these takes the engine millions of steps, and a text can have any number of them
RUNS = ("a" * 20 + "b") * 190


def cut_by(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return sentencepiece_bpe() | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split]}}


def encoder_of(tokenizer: Tokenizer) -> Any:
    return tokenizer._encoder


@pytest.fixture
def short_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded_encoding, "TEXT_S", 0.3)


@pytest.mark.parametrize("pattern", sorted({pattern for cut in PRE_TOKENIZERS.values() for pattern in cut.patterns}))
def test_expressions_of_public_models_are_run_in_place(pattern: str) -> None:
    assert unknown_expression(cut_by(pattern)) is None
    assert unknown_expression(cut_by(pattern.replace(r"\r", "\r").replace(r"\n", "\n"))) is None


@pytest.mark.parametrize(
    "pattern", [" ", r"\d", r"\p{N}{1,3}", " {2,}", "[0-9]+", r"[^\n]+|\n+", "<sentinel:[0-9]+>", r"\s+", r"\p{Han}+|x"]
)
def test_expressions_that_never_go_back_are_run_in_place(pattern: str) -> None:
    assert unknown_expression(cut_by(pattern)) is None


@pytest.mark.parametrize(
    "pattern",
    [
        ENDLESS,
        "a*a*b",
        ".*x",
        "(?:a|a)+",
        r"(\w+\s?)*$",
        "a?a?a?a?aaaa",
        r"\s+$",
        r"(?=(a+)+b)",
        "[[a]&&[b]]+c",
        "a|" * 300,
    ],
)
@pytest.mark.parametrize("where", ["pre_tokenizer", "normalizer"])
def test_any_other_is_run_apart(pattern: str, where: str) -> None:
    replace = {"type": "Replace", "pattern": {"Regex": pattern}, "content": "x"}
    described = cut_by(pattern) if where == "pre_tokenizer" else {"normalizer": {"normalizers": [replace]}}
    assert unknown_expression(described) == pattern


def test_apart_or_not_the_ids_are_the_same(tmp_path: Path) -> None:
    apart = folder_tokenizer(tmp_path, tokenizer=cut_by(r"[a-z]+(?= )|\s+"))
    assert isinstance(encoder_of(apart), GuardedEncoder)
    here = LibraryEncoder(encoder_of(apart)._opening["tokenizer"])
    assert encoder_of(apart).reading == here.reading
    for text in ("the lama é 日本 <s> the", "", "the " * 5000, "\x00\u2028"):
        for special in (True, False):
            assert apart.encode(text, add_special=False, parse_special=special) == here.encode(
                text, parse_special=special
            )


@pytest.mark.usefixtures("short_of_time")
def test_a_text_that_takes_too_long_is_an_input_error_and_the_next_one_is_encoded(tmp_path: Path) -> None:
    tokenizer = folder_tokenizer(tmp_path, tokenizer=cut_by(ENDLESS))
    with pytest.raises(
        InputError, match=r"cannot encode the text: it takes more than 0 s; an expression such as '\(a\+"
    ):
        tokenizer.encode(RUNS)
    assert tokenizer.decode(tokenizer.encode("the lama")) == "the lama"


@pytest.mark.usefixtures("short_of_time")
def test_other_threads_go_on_meanwhile(tmp_path: Path) -> None:
    tokenizer = folder_tokenizer(tmp_path, tokenizer=cut_by(ENDLESS))
    refused: list[BaseException] = []

    def encode() -> None:
        try:
            tokenizer.encode(RUNS)
        except InputError as error:
            refused.append(error)

    thread = threading.Thread(target=encode)
    thread.start()
    ticks = 0
    while thread.is_alive():
        time.sleep(0.005)
        ticks += 1
    assert len(refused) == 1
    assert ticks > 10


def test_a_file_that_takes_too_long_to_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded_encoding, "LOAD_S", 0.5)
    described = sentencepiece_bpe()
    described["normalizer"] = {"type": "Replace", "pattern": {"Regex": ENDLESS}, "content": "x"}
    token = {"id": 274, "content": RUNS, "special": False, "normalized": True}
    described["added_tokens"].append(token | {"single_word": False, "lstrip": False, "rstrip": False})
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: .*it takes more than 0 s; an expression such as"):
        folder_tokenizer(tmp_path, tokenizer=described)


def test_a_process_that_was_killed_is_started_anew_and_none_is_left(tmp_path: Path) -> None:
    tokenizer = folder_tokenizer(tmp_path, tokenizer=cut_by(ENDLESS))
    wanted = tokenizer.encode("the lama")
    process: subprocess.Popen[bytes] = encoder_of(tokenizer)._child._process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert tokenizer.encode("the lama") == wanted
    process = encoder_of(tokenizer)._child._process
    assert process.poll() is None
    del tokenizer
    assert process.wait(10) == -signal.SIGKILL


def test_processes_that_ended_leave_nothing_open(tmp_path: Path) -> None:
    tokenizer = folder_tokenizer(tmp_path, tokenizer=cut_by(ENDLESS))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        encoder_of(tokenizer)._child._process.kill()
        encoder_of(tokenizer)._child._process.wait()
        tokenizer.encode("the lama")
    assert len(os.listdir("/proc/self/fd")) == before


def test_closing_ends_texts_that_take_long_and_those_that_wait(tmp_path: Path) -> None:
    tokenizer = folder_tokenizer(tmp_path, tokenizer=cut_by(ENDLESS))
    refused: list[str] = []

    def encode() -> None:
        try:
            tokenizer.encode(RUNS)
        except InputError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=encode) for _ in range(3)]
    for thread in threads:
        thread.start()
    process: subprocess.Popen[bytes] = encoder_of(tokenizer)._child._process
    tokenizer.close()
    for thread in threads:
        thread.join(3)  # alone each would take five seconds
        assert not thread.is_alive()
    assert process.returncode == -signal.SIGKILL
    assert len(refused) == 3
    assert all("the program ends" in message for message in refused)


def test_white_space_at_the_end_is_found_alike_without_going_back_over_long_runs() -> None:
    drawn = random.Random(1)
    texts = ["".join(drawn.choices(" \t\n\u3000a1", k=drawn.randrange(1, 9))) for _ in range(3000)]
    plain, quick = (Split(Regex(pattern), "isolated") for pattern in (r"\s+$", _SPACES_AT_THE_END))
    for text in texts:
        assert quick.pre_tokenize_str(text) == plain.pre_tokenize_str(text), repr(text)
    assert len(quick.pre_tokenize_str(" " * 300_000 + "1")) == 1  # the plain one takes minutes
