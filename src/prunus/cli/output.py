"""What every command shares: data on stdout, messages on stderr, exit codes, common options."""

from __future__ import annotations

import functools
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from prunus.core.errors import PrunusError, PrunusWarning, SpecError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="The only source of randomness.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would be done; change nothing.")]

DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with deliberate errors and interruptions turned into one message and an exit code."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except PrunusError as error:
            raise typer.Exit(fail(error)) from error
        except KeyboardInterrupt as interrupt:
            say("interrupted: nothing was left half-written; the same command starts again, or goes on where it can")
            raise typer.Exit(INTERRUPTED) from interrupt

    return run


def console(*, stderr: bool = False) -> Any:
    """A rich console that honours NO_COLOR and falls back to a readable width when the output is no terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else 120
    return Console(stderr=stderr, width=width, highlight=False)


def say(message: str) -> None:
    """A message for the person at the terminal, on stderr."""
    from rich.markup import escape

    console(stderr=True).print(escape(message), soft_wrap=True)


def emit(data: Any) -> None:
    """One JSON document on stdout. Numbers that JSON has no sign for (NaN, infinity) become null."""
    json.dump(finite(data), sys.stdout, indent=1, allow_nan=False, default=str)
    sys.stdout.write("\n")


def planned(as_json: bool, plan: Mapping[str, Any], sentence: str) -> None:
    """What `--dry-run` prints: the plan as JSON with `dry_run: true`, or one sentence."""
    if as_json:
        emit({"dry_run": True, **plan})
    else:
        from rich.markup import escape

        console().print(escape(f"{sentence} (dry run: nothing was changed)"), soft_wrap=True)


def fail(error: PrunusError) -> int:
    """Print a deliberate error and return its exit code: 2 for wrong use, 1 for anything else."""
    from rich.markup import escape

    console(stderr=True).print(f"[bold red]error[/] {escape(str(error))}", soft_wrap=True)
    return WRONG_USE if isinstance(error, SpecError) else FAILED


@contextmanager
def told_warnings() -> Iterator[None]:
    """Show the package's warnings as messages, each once, instead of as Python source lines."""
    from prunus.core.errors import CollapseWarning

    told: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if not issubclass(category, PrunusWarning | CollapseWarning):
                usual(message, category, *place, **more)
            elif str(message) not in told:
                told.add(str(message))
                say(f"warning: {message}")

        warnings.showwarning = show
        yield


@contextmanager
def progress(total: int, what: str) -> Iterator[Any]:
    """A bar with loss and time left on a terminal, one line per tenth elsewhere; yields `step(done, loss)`."""
    if sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total, loss="-")

            def advance(done: int, loss: float) -> None:
                bar.update(task, completed=done, loss=f"{loss:.3f}")

            yield advance
        return
    last = 0

    def line(done: int, loss: float) -> None:
        nonlocal last
        tenth = 10 * done // max(1, total)
        if tenth > last:
            last = tenth
            say(f"{what}: {done}/{total} steps, loss {loss:.3f}")

    yield line


def finite(value: Any) -> Any:
    """Plain values with null for numbers that JSON has no sign for."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list | tuple) else value
