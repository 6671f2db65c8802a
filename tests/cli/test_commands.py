"""What is true of all commands, and the small ones: help, errors, models, inspect, doctor, replay."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import puna as package
from tests.cli.process import COMMAND, ROOT, puna
from tests.tiny import write_tiny_llama

COMMANDS = ["chat", "generate", "serve", "pull", "models", "inspect", "doctor", "replay", "simulate", "bench"]


def test_help_names_every_command() -> None:
    done = puna("--help")
    assert done.returncode == 0
    assert all(f" {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = puna(command, "--help")
    assert done.returncode == 0
    assert "Usage: puna" in done.stdout


def test_the_version_is_the_packages() -> None:
    assert puna("--version").stdout == f"puna {package.__version__}\n"


@pytest.mark.parametrize("statement", ["import puna", "import puna.cli.main"])
def test_importing_is_light(statement: str) -> None:
    heavy = "{'numpy', 'tokenizers', 'jinja2', 'fastapi', 'starlette', 'uvicorn', 'torch', 'msgspec'}"
    code = f"import sys; {statement}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["chat", "--nonsense"],
        ["chat", "hi", "--temperature", "-1"],
        ["chat", "hi", "--temperature", "hot"],
        ["chat", "hi", "--max-tokens", "0"],
        ["chat", "hi", "--backend", "abacus"],
        ["generate"],
        ["generate", "a", "--file", "b"],
        ["generate", "hello", ""],
        ["chat", "hi", "--kv-dtype", "int4"],
        ["chat", "hi", "--kv-gib", "nan"],
        ["chat", "hi", "--kv-gib", "inf"],
        ["serve", "--kv-gib", "-1"],
        ["serve", "--max-seqs", "0"],
        ["serve", "--port", "70000"],
        ["serve", "--drain", "inf"],
        ["serve", "--name", ""],
        ["serve", "--api-key", ""],
        ["serve", "--api-key", "schl\u00fcssel"],
        ["serve", "--max-body-mb", "99999999999999999999"],
        ["inspect", "x.gguf", "--system", "a"],
        ["inspect", "x.gguf", "--prompt", "a", "--tensors"],
        ["inspect", "x.gguf", "--prompt", "a", "--messages", "x.json"],
        ["inspect", "x.gguf", "--tools", "x.json"],
        ["pull"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    done = puna(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "option"),
    [(["generate", "a", "--samples", "0"], "--samples"), (["serve", "--max-waiting", "0"], "--max-waiting")],
)
def test_an_option_is_called_what_the_person_typed(arguments: list[str], option: str) -> None:
    assert f"Invalid value for {option}:" in puna(*arguments).stderr


@pytest.mark.parametrize("name", ["", "  ", "~nobody-has-this-name/x.gguf", "x/" + "y" * 5000])
def test_a_name_that_can_name_no_file_is_one_line(name: str) -> None:
    done = puna("inspect", name)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert len(done.stderr) < 1500


def test_a_home_that_is_no_folder_is_one_line() -> None:
    done = puna("models", env={"PUNA_HOME": "~nobody-has-this-name/x"})
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "PUNA_HOME" in done.stderr


@pytest.mark.parametrize("host", ["a" * 300, "..", "x..y"])
def test_a_host_that_no_name_system_could_hold_is_one_line(tiny_model: Path, host: str) -> None:
    done = puna("serve", str(tiny_model), "--host", host, "--api-key", "k")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_a_models_own_words_cannot_steer_the_terminal(tmp_path: Path) -> None:
    metadata = {"general.name": "Nice\x1b]0;owned\x07\x1b[2J", "general.license": "a\nb"}
    path = write_tiny_llama(tmp_path / "model.gguf", metadata=metadata)
    shown = puna("inspect", str(path)).stdout
    assert "\\x1b]0;owned" in shown
    assert "\x1b" not in shown
    assert "a\\nb" in shown


def test_a_recording_that_the_disk_cannot_hold_is_said_and_the_answer_is_whole(tiny_model: Path) -> None:
    command = ["generate", "hi", "-m", str(tiny_model), "--backend", "reference", "--max-tokens", "3"]
    done = puna(*command, "--record", "/dev/full")
    assert done.returncode == 1
    assert done.stdout == puna(*command).stdout
    assert "/dev/full" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [["chat", "hi", "-m"], ["generate", "hi", "-m"], ["inspect"], ["pull"]])
def test_a_model_that_nobody_knows_is_one_line_on_stderr(command: list[str]) -> None:
    done = puna(*command, "smolm2")
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "smollm2" in done.stderr


@pytest.mark.parametrize("arguments", [["--debug", "inspect", "nobody"], ["inspect", "nobody", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(arguments: list[str]) -> None:
    done = puna(*arguments)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_file_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00 and then nothing that makes sense")
    done = puna("inspect", str(path))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "broken.gguf" in done.stderr


def test_inspect_describes_a_file(tiny_model: Path) -> None:
    facts = json.loads(puna("inspect", str(tiny_model), "--json", "--tensors").stdout)
    assert (facts["layers"], facts["width"], facts["context_length"]) == (2, 64, 256)
    assert any(tensor["name"] == "token_embd.weight" for tensor in facts["tensors"])
    text = puna("inspect", str(tiny_model), "--tensors").stdout
    assert "token_embd.weight" in text
    assert "llama" in text


def test_inspect_shows_exactly_what_a_question_becomes(tiny_model: Path) -> None:
    facts = json.loads(puna("inspect", str(tiny_model), "--json", "--prompt", "hello").stdout)
    assert facts["text"] == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert "".join(token["text"] for token in facts["tokens"]) == facts["text"]
    assert facts["tokens"][0] == {"id": 1, "text": "<|im_start|>"}


def test_inspect_shows_what_a_conversation_in_a_file_becomes(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "messages.json"
    path.write_text(json.dumps([{"role": "system", "content": "brief"}, {"role": "user", "content": "hello"}]))
    facts = json.loads(puna("inspect", str(tiny_model), "--json", "--messages", str(path)).stdout)
    system = "<|im_start|>system\nbrief<|im_end|>\n"
    assert facts["text"] == system + "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    path.write_text('{"role": "user"}')
    done = puna("inspect", str(tiny_model), "--messages", str(path))
    assert done.returncode != 0
    assert "messages.json: expected a JSON list of messages" in done.stderr


def test_models_says_what_could_be_pulled(tmp_path: Path) -> None:
    home = {"PUNA_HOME": str(tmp_path)}
    assert "puna pull smollm2" in puna("models", env=home).stdout
    assert json.loads(puna("models", "--json", env=home).stdout) == []
    done = puna("models", "--remove", "smollm2", env=home)
    assert done.returncode == 1
    assert "smollm2" in done.stderr


def test_doctor_finds_this_machine_fit_or_says_what_to_do() -> None:
    done = puna("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert set(checks) == {"python", "cpu", "native core", "memory", "disk", "models", "self-test"}
    assert all(check["state"] == "ok" or check["remedy"] for check in checks.values())
    assert done.returncode == any(check["state"] == "fail" for check in checks.values())
    table = puna("doctor")
    assert table.returncode == done.returncode
    assert all(name in table.stdout for name in checks)


def test_a_recording_replays_exactly_and_a_damaged_one_does_not(tiny_model: Path, tmp_path: Path) -> None:
    recording = tmp_path / "steps.rec"
    made = puna("generate", "hello", "-m", str(tiny_model), "--backend", "reference", "--record", str(recording))
    assert made.returncode == 0, made.stderr
    done = puna("replay", str(recording))
    assert done.returncode == 0
    assert "exact" in done.stdout
    nothing = tmp_path / "nothing.rec"
    nothing.write_bytes(b"not a recording")
    refused = puna("replay", str(nothing))
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1


def test_a_reader_that_goes_away_is_no_error(tiny_model: Path) -> None:
    command = [*COMMAND, "inspect", str(tiny_model), "--tensors"]
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 141
        process.stderr.close()


@pytest.mark.parametrize("arguments", ["--version", "--help", "generate --help"])
def test_a_full_disk_is_no_traceback_for_the_help_either(arguments: str) -> None:
    with open("/dev/full", "wb") as full:
        command = [*COMMAND, *arguments.split()]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=ROOT, text=True, timeout=60)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "No space left" in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_streams_that_the_caller_closed_are_no_error(tiny_model: Path, closed: str, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    command = f"{' '.join(COMMAND)} generate hi -m {tiny_model} --backend reference -n 3 -o {output} {closed}"
    done = subprocess.run(["sh", "-c", command], stdin=subprocess.DEVNULL, cwd=ROOT, timeout=60)
    assert done.returncode == 0
    assert len(json.loads(output.read_text())["outputs"][0]["token_ids"]) == 3


def test_a_full_disk_is_one_line(tiny_model: Path) -> None:
    with open("/dev/full", "wb") as full:
        command = [*COMMAND, "inspect", str(tiny_model), "--tensors"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=ROOT, text=True, timeout=60)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "No space left" in done.stderr


def test_tools_that_a_template_leaves_out_are_told(tiny_model: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text('[{"type": "function", "function": {"name": "weather", "parameters": {}}}]')
    done = puna("inspect", str(tiny_model), "--prompt", "hello", "--tools", str(tools))
    assert "no place for tools" in done.stderr
    with_place = write_tiny_llama(
        tmp_path / "place.gguf",
        metadata={"tokenizer.chat_template": "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}x"},
    )
    done = puna("inspect", str(with_place), "--prompt", "hello", "--tools", str(tools))
    assert done.stdout.startswith("weatherx")
    assert done.stderr == ""
