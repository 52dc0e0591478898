"""`prunus analyze`: one file per analysis, found by itself.

A module here has `ABOUT`, what it asks and where that is from, and `analyze`, a function whose parameters are options
of the command. A parameter whose type is a dataclass of options stands for all of them. It checks what it was given and
returns the `Work` that is left to do, so that `--dry-run` is a check without the work.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from prunus.cli.output import DryRun, Json, console, emit, guarded, planned, told_warnings
from prunus.cli.showing import check_out, present

if TYPE_CHECKING:
    from prunus.report.analysis import Analysis

app = typer.Typer(no_args_is_help=True, help="Look into networks, results and runs: one command per analysis.")

Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="FILE", help="Write a page (.html), its plot (.svg), or data (.json, .csv)."),
]


@dataclass(frozen=True)
class About:
    """What an analysis is: the question it answers, what it looks at, and whose definition it follows."""

    question: str
    takes: str
    source: str


@dataclass(frozen=True)
class Work:
    """What is left to do once everything was checked.

    Attributes:
        sentence: what would be done, for `--dry-run`.
        plan: the same as plain values.
        run: does it.
    """

    sentence: str
    plan: Mapping[str, Any]
    run: Callable[[], Analysis]


def modules() -> dict[str, ModuleType]:
    """The analyses by name, in alphabetical order."""
    found = sorted(m.name for m in pkgutil.iter_modules(__path__))
    return {name.replace("_", "-").strip("-"): importlib.import_module(f"{__name__}.{name}") for name in found}


def command(name: str, module: ModuleType) -> Callable[..., None]:
    """The analysis as a command: its options, those of its dataclasses, and those that all analyses have."""
    hints, parameters, bundles = get_type_hints(module.analyze, include_extras=True), [], dict[str, Any]()
    own = inspect.signature(module.analyze).parameters
    for parameter in own.values():
        kind = hints[parameter.name]
        if is_dataclass(kind):
            bundles[parameter.name] = kind
            told = get_type_hints(kind, include_extras=True)
            for f in fields(kind):
                default = inspect.Parameter.empty if f.default is MISSING else f.default
                parameters.append((f.name, told[f.name], default))
        else:
            parameters.append((parameter.name, kind, parameter.default))

    def run(*, out: Path | None, dry_run: bool, json: bool, **given: Any) -> None:
        check_out(out)
        made = {n: kind(**{f.name: given.pop(f.name) for f in fields(kind)}) for n, kind in bundles.items()}
        with told_warnings():
            work: Work = module.analyze(**made, **given)
            if dry_run:
                planned(json, {"analysis": name, **work.plan}, work.sentence)
                return
            present(work.run(), json, out)

    shared = (("out", Out, None), ("dry_run", DryRun, False), ("json", Json, False))
    signature = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, annotation=a, default=d)
        for n, a, d in [*parameters, *shared]
    ]
    run.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in signature}
    run.__doc__ = module.analyze.__doc__
    return run


def list_(json: Json = False) -> None:
    """The analyses: what each asks, what it takes, and whose definition it follows."""
    found = {name: module.ABOUT for name, module in modules().items()}
    if json:
        emit([{"name": n, "question": a.question, "takes": a.takes, "source": a.source} for n, a in found.items()])
        return
    from rich.table import Table

    table = Table("analysis", "question", "takes", "source")
    for name, about in found.items():
        table.add_row(name, about.question, about.takes, about.source)
    console().print(table)


app.command("list")(guarded(list_))
for _name, _module in modules().items():
    app.command(_name)(guarded(command(_name, _module)))
