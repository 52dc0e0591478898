"""How an analysis is shown: tables on a terminal, one JSON document, or a page, a picture, a file of data."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prunus.cli.output import console, emit, finite, say
from prunus.core.errors import SpecError

if TYPE_CHECKING:
    from prunus.report.analysis import Analysis

KINDS = (".html", ".svg", ".json", ".csv")
MOST = 40  # rows of a table that a terminal is shown
PATIENCE = 5.0  # seconds before a log is told how far it is


def check_out(out: Path | None) -> None:
    """Refuse a file that could not be written, before anything is worked out."""
    from prunus.deploy.atomic import check_writable

    if out is None:
        return
    if out.suffix not in KINDS:
        raise SpecError(f"--out {out}: the file's name must end in {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    if out.is_dir():
        raise SpecError(f"--out {out} is a folder: name a file in it")
    check_writable(out.absolute().parent)


def present(found: Analysis, json: bool, out: Path | None, *, left_out: int = 0) -> None:
    """Show it, and write it where that was asked for. left_out: so many tables, the first ones, that a terminal is not
    shown.
    """
    if out is not None:
        _write(found, out)
    if json:
        emit(found.to_dict())
        return
    from rich.markup import escape
    from rich.table import Table

    screen = console()
    for one in found.tables[left_out:]:
        table = Table(title=escape(one.title), title_justify="left")
        for i, name in enumerate(one.columns):
            table.add_column(escape(name), justify="right" if one.numeric(i) else "left")
        for row in one.rows[:MOST]:
            table.add_row(*(escape(one.shown(cell)) for cell in row))
        screen.print(table)
        if len(one.rows) > MOST:
            screen.print(f"{len(one.rows) - MOST} more rows: --json or --out FILE.csv has all")
    for sentence in found.says:
        screen.print(escape(sentence), soft_wrap=True)
    for note in found.notes:
        say(note)
    if out is not None:
        say(f"written: {out}")


def _write(found: Analysis, out: Path) -> None:
    import json

    from prunus.report.files import write_together

    if out.suffix == ".html":
        from prunus.report.analysis_page import page

        text = page(found)
    elif out.suffix == ".svg":
        from prunus.report.analysis_plots import plot_svg

        if not found.plots:
            raise SpecError(f"--out {out}: this analysis has no plot; .html, .json and .csv have its tables")
        text = plot_svg(found.plots[0])
    elif out.suffix == ".json":
        text = json.dumps(finite(found.to_dict()), indent=1, allow_nan=False) + "\n"
    else:
        text = found.tables[0].csv()
    write_together(out.parent, {out.name: text})


@contextmanager
def counting(what: str) -> Iterator[Callable[..., None]]:
    """A bar on a terminal, a line per tenth elsewhere once it takes long; yields `step(done, total, ...)`."""
    if sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total, *_: bar.update(task, completed=done, total=total)
        return
    last, began = 0, time.monotonic()

    def line(done: int, total: int, *_: float) -> None:
        nonlocal last
        tenth = 10 * done // max(1, total)
        if tenth > last and time.monotonic() - began > PATIENCE:
            last = tenth
            say(f"{what}: {done} of {total}")

    yield line
