"""Options that several commands share, as one parameter: a frozen dataclass whose fields are options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

Command = Callable[..., None]


def bundled(command: Command) -> Command:
    """The command as Typer sees it: for every parameter whose type is a dataclass, the dataclass's fields."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(**gathered(command, given))

    return signed(run, options(command))


def options(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a function, those of dataclasses in their place, in order and by keyword."""
    hints, found = get_type_hints(function, include_extras=True), list[inspect.Parameter]()
    for parameter in inspect.signature(function).parameters.values():
        kind = hints[parameter.name]
        if is_dataclass(kind):
            told = get_type_hints(kind, include_extras=True)
            found += [option(f.name, told[f.name], f.default) for f in fields(kind)]
        else:
            found.append(option(parameter.name, kind, parameter.default))
    return found


def option(name: str, kind: Any, default: Any) -> inspect.Parameter:
    """One parameter by keyword; a default that is missing makes it required."""
    default = inspect.Parameter.empty if default is MISSING else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)


def gathered(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What the function is called with, its dataclasses made of their fields; the rest of `given` is left out."""
    hints = get_type_hints(function, include_extras=True)
    return {name: _whole(hints[name], name, given) for name in inspect.signature(function).parameters}


def _whole(kind: Callable[..., Any], name: str, given: Mapping[str, Any]) -> Any:
    parts = getattr(kind, "__dataclass_fields__", None)
    return given[name] if parts is None else kind(**{part: given[part] for part in parts})


def signed(command: Command, parameters: Iterable[inspect.Parameter]) -> Command:
    """The command, which shows these parameters as its own."""
    shown = list(parameters)
    command.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in shown}
    return command
