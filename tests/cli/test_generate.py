"""`puna generate`: many prompts in, records in order out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.cli.process import COMMAND, ROOT, puna


def options(model: Path) -> list[str]:
    return ["-m", str(model), "--backend", "reference", "--max-tokens", "6"]


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_each_argument_is_a_record_in_order(tiny_model: Path) -> None:
    done = puna("generate", "hello", "the llama", "you", *options(tiny_model))
    assert done.returncode == 0, done.stderr
    found = records(done.stdout)
    assert [r["prompt"] for r in found] == ["hello", "the llama", "you"]
    assert [r["id"] for r in found] == [1, 2, 3]
    assert all(0 < len(r["outputs"][0]["token_ids"]) <= 6 for r in found)
    assert "3 prompts done" in done.stderr


def test_together_or_alone_the_answers_are_the_same(tiny_model: Path) -> None:
    prompts = [f"hello {word}" for word in ("you", "llama", "that", "with", "for", "was")]
    sampled = ["--temperature", "20", "--seed", "5"]
    together = records(puna("generate", *prompts, *options(tiny_model), *sampled).stdout)
    one_by_one = records(puna("generate", *prompts, *options(tiny_model), *sampled, "--max-seqs", "1").stdout)
    assert [r["outputs"] for r in together] == [r["outputs"] for r in one_by_one]


def test_a_text_file_has_one_prompt_a_line(tiny_model: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    source.write_text("hello\n\nthe llama\r\nlast one without an end")
    done = puna("generate", "--file", str(source), "-o", str(target), *options(tiny_model))
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    found = records(target.read_text())
    assert [(r["line"], r["prompt"]) for r in found] == [
        (1, "hello"),
        (3, "the llama"),
        (4, "last one without an end"),
    ]


def test_a_bad_line_is_an_error_record_and_the_others_still_run(tiny_model: Path) -> None:
    lines = [
        b'{"id": "a", "prompt": "hello"}',
        b"not json",
        b'{"id": "c", "prompt": "hello", "temperature": -1}',
        b'{"id": "d", "prompt": "hello", "nonsense": 1}',
        b'{"id": "e", "prompt": "hello", "messages": []}',
        b'{"id": "f"}',
        b'{"id": "g", "prompt_token_ids": [99999]}',
        b'{"id": "h", "prompt": "' + b"z" * 400 + b'"}',
        b'{"id": "i", "messages": [{"role": "user"}]}',
        b'{"id": "j", "prompt": "\xff"}',
        b'{"id": "k", "prompt": "hello", "logprobs": 2}',
        b"[1, 2]",
        b"[" * 100_000,
        b"",
        b'{"id": "z", "messages": [{"role": "user", "content": "hi"}], "n": 2, "seed": 3}',
    ]
    done = puna("generate", "--jsonl", "-", *options(tiny_model), stdin=b"\n".join(lines))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    found = records(done.stdout)
    assert [r["line"] for r in found] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15]
    assert [r["id"] for r in found if "error" not in r] == ["a", "z"]
    assert all(f"line {r['line']}" in r["error"] for r in found if "error" in r)
    assert [sample["index"] for sample in found[-1]["outputs"]] == [0, 1]
    assert {r["id"] for r in found} >= {"c", "d", "e", "f", "g", "h", "i"}


def test_a_line_has_its_own_parameters_and_keeps_the_others(tiny_model: Path) -> None:
    lines = [
        '{"prompt": "hello", "max_tokens": 3, "ignore_eos": true}',
        '{"prompt": "hello", "ignore_eos": true}',
        '{"prompt": "hello", "logit_bias": {"70": 100}, "stop": ["CC"], "include_stop_str_in_output": true}',
    ]
    found = records(puna("generate", "--jsonl", "-", *options(tiny_model), stdin="\n".join(lines)).stdout)
    assert [len(r["outputs"][0]["token_ids"]) for r in found[:2]] == [3, 6]
    assert found[2]["outputs"][0]["text"] == "CC"
    assert found[2]["outputs"][0]["finish_reason"] == "stop"


def test_token_ids_and_text_are_the_same_prompt(tiny_model: Path) -> None:
    ids = [3 + byte for byte in b"zebra"]
    lines = [json.dumps({"prompt": "zebra"}), json.dumps({"prompt_token_ids": ids})]
    one, two = records(puna("generate", "--jsonl", "-", *options(tiny_model), stdin="\n".join(lines)).stdout)
    assert one["outputs"] == two["outputs"]
    assert "prompt" not in two


def test_a_file_that_is_not_there_is_one_line(tiny_model: Path, tmp_path: Path) -> None:
    done = puna("generate", "--file", str(tmp_path / "none.txt"), *options(tiny_model))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_leaves_whole_records_only(patient_model: Path) -> None:
    command = [*COMMAND, "generate", "--jsonl", "-", "-m", str(patient_model), "--backend", "reference"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b'{"prompt": "hello", "max_tokens": 3}\n')
    process.stdin.write(b'{"prompt": "hello", "max_tokens": 16000, "ignore_eos": true}\n')
    process.stdin.close()
    process.stdin = None
    first = os.read(process.stdout.fileno(), 65536)
    process.send_signal(signal.SIGINT)
    rest, marks = process.communicate(timeout=60)
    assert process.returncode == 130
    assert [r["line"] for r in records((first + rest).decode())] == [1]
    assert b"interrupted" in marks
    assert b"Traceback" not in marks


def test_prompts_that_are_too_long_are_cut_where_that_is_asked_for_and_each_record_says_so(tiny_model: Path) -> None:
    lines = [
        {"prompt": "z" * 400},
        {"prompt": "hello"},
        {"messages": [{"role": "user", "content": "z" * 400}]},
        {"prompt_token_ids": [100] * 400, "truncate_prompt_tokens": 30},
        {"prompt": "z" * 400, "truncate_prompt_tokens": None},
    ]
    given = "".join(json.dumps(line) + "\n" for line in lines)
    done = puna("generate", "--jsonl", "-", *options(tiny_model), "--truncate-prompt-tokens", "-1", stdin=given)
    long, short, chat, ids, refused = records(done.stdout)
    assert (long["prompt_tokens"], long["truncated_tokens"]) == (250, 150)
    assert long["prompt"] == "z" * 400
    assert "truncated_tokens" not in short
    assert chat["prompt_tokens"] <= 250
    assert chat["truncated_tokens"] > 150
    assert (ids["prompt_tokens"], ids["truncated_tokens"]) == (30, 370)
    assert "truncate_prompt_tokens" in refused["error"]
    assert "3 with a prompt that was cut" in done.stderr
