"""A command's options from a TOML file: the same names, the same values, the same checks as on the command line.

What stands on the command line or in an option's environment variable wins over the file. It knows a command's
parameters and TOML; it knows no option.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any

import typer

_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "true or false"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
}


def read_config(context: typer.Context, file: Path | None) -> Path | None:
    """A callback for an eager option: makes the file's values the command's defaults. BadParameter names the file, the
    option and, for a name that is none, the nearest known one."""
    if file is None or context.resilient_parsing:
        return file
    parameters = _parameters(context)
    defaults: dict[str, Any] = {}
    for written, value in _table(file).items():
        name = written.replace("_", "-")
        if name not in parameters:
            near = difflib.get_close_matches(name, parameters, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(parameters))}"
            raise _wrong(file, f"{written} is not an option; {hint}")
        parameter = parameters[name]
        if parameter.name in defaults:
            raise _wrong(file, f"{written} stands there twice, with a dash and with an underscore")
        _check(file, written, value, parameter)
        given = [value] if parameter.multiple and not isinstance(value, list) else value
        try:
            parameter.process_value(context, given)
        except Exception as error:
            raise _wrong(file, f"{written}: {getattr(error, 'message', error)}") from None
        defaults[parameter.name] = given
    context.default_map = {**(context.default_map or {}), **defaults}
    return file


def _parameters(context: typer.Context) -> dict[str, Any]:
    """Options by the name that the file uses; where an argument has an option beside it, the option."""
    found: dict[str, Any] = {}
    for parameter in context.command.params:
        long = [name for name in getattr(parameter, "opts", []) if name.startswith("--")]
        if long and not parameter.is_eager:
            found[long[0].removeprefix("--")] = parameter
    return found


def _table(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            return tomllib.load(opened)
    except OSError as error:
        raise _wrong(file, f"it cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _wrong(file, f"it is not TOML: {error}") from None


def _check(file: Path, name: str, value: Any, parameter: Any) -> None:
    """The type as it stands in the file: `port = true` is a mistake, not port 1."""
    values = value if isinstance(value, list) and parameter.multiple else [value]
    allowed, kind = _TYPES.get(parameter.bare_type(), ((str,), "a text"))
    for one in values:
        if type(one) not in allowed:
            raise _wrong(file, f"{name} takes {kind}{', or a list of those' if parameter.multiple else ''}")


def _wrong(file: Path, message: str) -> typer.BadParameter:
    return typer.BadParameter(f"{file}: {message}", param_hint="--config")
