"""`--config`: a file's values are options' defaults, checked like those of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from puna.cli.config_file import read_config
from puna.cli.main import app
from puna.cli.option_group import shows, takes_groups
from tests.cli.process import ROOT
from tests.cli.test_options import options_of

plants = typer.Typer()


@plants.command()
@shows("config")
@takes_groups
def grow(
    config: Annotated[Path | None, typer.Option("--config", callback=read_config, is_eager=True)] = None,
    kind: Annotated[str, typer.Option("--kind", envvar="PLANT_KIND")] = "oak",
    how_many: Annotated[int, typer.Option("--how-many", min=1)] = 1,
    height: Annotated[float, typer.Option("--height")] = 1.0,
    wet: Annotated[bool, typer.Option()] = False,
    place: Annotated[list[str] | None, typer.Option("--place")] = None,
) -> None:
    """Grows."""
    del config
    print(kind, how_many, height, wet, place)


def run(file: Path, text: str, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    file.write_text(text)
    done = CliRunner().invoke(plants, ["--config", str(file), *arguments], env={"COLUMNS": "500", **(env or {})})
    return done.exit_code, done.output


def test_the_command_line_wins_over_the_environment_over_the_file_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "plants.toml"
    text = 'kind = "elm"\nhow-many = 3\nheight = 2\nwet = true\nplace = ["a", "b"]\n'
    assert run(file, text) == (0, "elm 3 2.0 True ['a', 'b']\n")
    assert run(file, text, "--how-many", "4", "--no-wet", "--place", "c") == (0, "elm 4 2.0 False ['c']\n")
    assert run(file, text, env={"PLANT_KIND": "fir"})[1].startswith("fir 3")
    assert run(file, 'how_many = 3\nplace = "a"\n') == (0, "oak 3 1.0 False ['a']\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("how-mny = 3", "did you mean how-many?"),
        ("zzz = 3", "known: height, how-many"),
        ("how-many = true", "how-many takes a whole number"),
        ('how-many = "3"', "how-many takes a whole number"),
        ("how-many = 0", "how-many: "),
        ("wet = 1", "wet takes true or false"),
        ("place = [1]", "place takes a text, or a list of those"),
        ("how-many = 1\nhow_many = 2", "twice"),
        ("[kind]\na = 1", "kind takes a text"),
        ('config = "x"', "config is not an option"),
        ("kind =", "it is not TOML"),
    ],
)
def test_a_file_that_is_wrong_is_wrong_usage_and_says_where(tmp_path: Path, text: str, said: str) -> None:
    code, output = run(tmp_path / "plants.toml", text)
    assert code == 2
    assert "plants.toml" in output
    assert said in output


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    done = CliRunner().invoke(plants, ["--config", str(tmp_path / "none.toml")], env={"COLUMNS": "500"})
    assert done.exit_code == 2
    assert "cannot be read" in done.output


def test_the_help_of_serve_is_short_and_the_page_has_every_option() -> None:
    page = (Path(ROOT) / "docs/serving.md").read_text()
    names = [name for name in options_of("serve") if name != "--help"]
    assert [name for name in names if f"`{name}" not in page] == []
    shown = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    assert len([name for name in names if f"{name} " in shown]) == 10
