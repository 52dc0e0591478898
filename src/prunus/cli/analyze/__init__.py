"""`prunus analyze`: one file per analysis, found by itself.

A module here has `ABOUT`, what it asks and where that is from, and `analyze`, a function whose parameters are options
of the command (`prunus.cli.bundles`: a dataclass of options stands for all of them). It checks what it was given and
returns the `Work` that is left to do, so that `--dry-run` is a check without the work.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunus.cli.bundles import gathered, option, options, signed
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

    def run(*, out: Path | None, dry_run: bool, json: bool, **given: Any) -> None:
        check_out(out)
        with told_warnings():
            work: Work = module.analyze(**gathered(module.analyze, given))
            if dry_run:
                planned(json, {"analysis": name, **work.plan}, work.sentence)
                return
            present(work.run(), json, out)

    run.__doc__ = module.analyze.__doc__
    shared = (("out", Out, None), ("dry_run", DryRun, False), ("json", Json, False))
    return signed(run, [*options(module.analyze), *(option(*one) for one in shared)])


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
