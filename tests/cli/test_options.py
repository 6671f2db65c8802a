"""Options that commands share: one declaration, the same names, texts and defaults wherever they are taken."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from puna.cli import options
from puna.cli.main import app
from puna.cli.option_group import takes_groups
from puna.engine.config import EngineConfig
from puna.engine.params import SamplingParams
from tests.cli.process import ROOT

COMMANDS = ["chat", "generate", "serve", "bench latency", "bench throughput", "bench prefill"]


def options_of(command: str) -> dict[str, tuple[str, object]]:
    """Help text and default of every option, by what a user types."""
    found = typer.main.get_command(app)
    for name in command.split():
        found = found.commands[name]
    return {
        option: (parameter.help, parameter.default)
        for parameter in found.params
        for option in getattr(parameter, "opts", [])
        if option.startswith("--") and hasattr(parameter, "help")
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_starts_an_engine_has_the_same_engine_options(command: str) -> None:
    wanted = options_of("chat")
    names = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(options.EngineOptions)]
    assert {name: options_of(command)[name] for name in names} == {name: wanted[name] for name in names}


def test_options_that_are_not_given_are_the_defaults_of_the_engine_and_of_sampling() -> None:
    assert options.EngineOptions().config("m") == options.CoreOptions().config("m") == EngineConfig(model="m")
    assert options.SamplingOptions().params() == SamplingParams(temperature=0, max_tokens=None)


def test_a_size_in_gib_becomes_bytes_and_a_bad_one_names_its_option() -> None:
    assert options.EngineOptions(kv_gib=0.5).config("m", max_seqs=3) == EngineConfig(
        model="m", kv_bytes=2**29, max_seqs=3
    )
    with pytest.raises(typer.BadParameter) as caught:
        options.EngineOptions(kv_gib=0).config("m")
    assert caught.value.param_hint == "--kv-gib"
    with pytest.raises(typer.BadParameter) as caught:
        options.CoreOptions(threads=-1).config("m")
    assert caught.value.param_hint == "--threads"


@dataclasses.dataclass(frozen=True)
class Fruit:
    kind: Annotated[str, typer.Option("--kind", help="Which one.")] = "apple"
    count: Annotated[int, typer.Option("--count")] = 2


@takes_groups
def eat(where: Annotated[str, typer.Argument()] = "here", *, fruit: Fruit, loud: bool = False) -> None:
    """Eats."""
    print(where, fruit, loud)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], f"here {Fruit()} False"),
        (["there", "--count", "3", "--loud"], f"there {Fruit(count=3)} True"),
        (["--kind", "pear"], f"here {Fruit('pear')} False"),
    ],
)
def test_a_group_reaches_its_command_whole(arguments: list[str], said: str) -> None:
    fruits = typer.Typer()
    fruits.command()(eat)
    done = CliRunner().invoke(fruits, arguments)
    assert done.stdout.strip() == said, done.output
    assert "Which one." in CliRunner().invoke(fruits, ["--help"]).stdout


def test_the_page_lists_every_option_of_the_engine() -> None:
    page = (Path(ROOT) / "docs/cli.md").read_text()
    for field in dataclasses.fields(options.EngineOptions):
        assert f"`--{field.name.replace('_', '-')}" in page or f"`--no-{field.name}`" in page, field.name
