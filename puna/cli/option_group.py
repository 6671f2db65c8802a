"""Options that belong together, declared once as a frozen dataclass and taken whole by the commands that share them.

A command with a parameter of such a class, under `@takes_groups`, has the class's fields as options of its own, in the
parameter's place: their names, help texts and defaults. Under `@shows` most of its options are left out of its help. It
knows dataclasses and signatures, and no option.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from typer.models import OptionInfo


def takes_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command as Typer wants it: one parameter for each option. Two of one name are a mistake in the program."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        p.name: p.annotation for p in signature.parameters.values() if dataclasses.is_dataclass(p.annotation)
    }

    def run(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
        command(**given)

    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name in groups:
            parameters += _options(groups[parameter.name])
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    run.__doc__, run.__name__, run.__module__ = command.__doc__, command.__name__, command.__module__
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {}
    return run


def shows(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The command, made by `takes_groups`, with a short help: options of other names work, and are not listed."""

    def hide(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        parameters = [
            p if p.name in names else p.replace(annotation=_hidden(p.annotation)) for p in signature.parameters.values()
        ]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return hide


def _hidden(annotation: Any) -> Any:
    if get_origin(annotation) is not Annotated:
        return annotation
    kind, *notes = get_args(annotation)
    for place, note in enumerate(notes):
        if isinstance(note, OptionInfo):
            notes[place] = copy.copy(note)
            notes[place].hidden = True
    return Annotated[(kind, *notes)]


def _options(group: Any) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in dataclasses.fields(group):
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
