"""How an analysis is shown: tables on a terminal, one JSON document, or a page, a picture, a file of data."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunus.cli.output import console, emit, finite, say
from prunus.core.errors import SpecError

if TYPE_CHECKING:
    from prunus.report.analysis import Analysis, Table

KINDS = (".html", ".svg", ".json", ".csv")
MOST = 40  # rows of a table that a terminal is shown
TEXT = 24  # characters from which on a cell is text that may be broken into lines
ANY = 10_000  # characters of a line where nobody looks at a screen
HEAD = 8  # characters of a line of a column's name
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
    """Show it, and write it where that was asked for.

    Tables without a row are not shown, and of a table that is wider than the terminal only the first columns.
    left_out: so many tables, the first ones, that a terminal is not shown.
    """
    if out is not None:
        _write(found, out)
    if json:
        emit(found.to_dict())
        return
    from rich.markup import escape

    screen = console()
    for one in (t for t in found.tables[left_out:] if t.rows):
        # A file or a pipe takes lines of any length.
        room = screen.width if screen.is_terminal or "COLUMNS" in os.environ else ANY
        wide, needs = fitting(one, room)
        screen.width = max(screen.width, min(room, taken(needs[:wide])))
        screen.print(grid(one, wide, needs), "")
        hidden = [f"columns {', '.join(one.columns[wide:])}"] if wide < len(one.columns) else []
        hidden += [f"{len(one.rows) - MOST} more rows"] if len(one.rows) > MOST else []
        if hidden:
            screen.print(
                escape(f"Not shown: {'; '.join(hidden)}. --json and --out FILE.html have them."), soft_wrap=True
            )
    for sentence in found.says:
        screen.print(escape(sentence), soft_wrap=True)
    for note in found.notes:
        say(note)
    if out is not None:
        say(f"written: {out}")


def fitting(one: Table, width: int) -> tuple[int, list[int | None]]:
    """How many columns fit that width, and how wide each is; None for texts that are broken into lines."""
    from rich.cells import cell_len

    needs: list[int | None] = []
    for i, name in enumerate(one.columns):
        longest = max(cell_len(one.shown(row[i])) for row in one.rows[:MOST])
        head = max(min(HEAD, len(name)), *map(cell_len, name.split()))
        needs.append(max(longest, head) if i == 0 or longest <= TEXT else None)
    wide = len(needs)
    while wide > 2 and taken(needs[:wide]) > width:
        wide -= 1
    return wide, needs


def taken(needs: Sequence[int | None]) -> int:
    """Characters that columns of these widths take at least."""
    return sum((TEXT if n is None else n) + 2 for n in needs)


def grid(one: Table, wide: int, needs: Sequence[int | None]) -> Any:
    """The first `wide` columns of a table, for a terminal."""
    from textwrap import fill

    from rich import box
    from rich.markup import escape
    from rich.table import Table as Grid

    made = Grid(
        title=escape(one.title), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0)
    )
    for i, (name, need) in enumerate(zip(one.columns[:wide], needs, strict=False)):
        head = escape(name if need is None else fill(name, need))
        made.add_column(head, justify="right" if one.numeric(i) else "left", no_wrap=need is not None, overflow="fold")
    for row in one.rows[:MOST]:
        made.add_row(*(escape(one.shown(cell)) for cell in row[:wide]))
    return made


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
    """A bar on a terminal, a line per tenth elsewhere once it takes long; yields `step(done, total, ...)`.

    A text after the two numbers is what comes next: it stands at the bar, and elsewhere is a line of its own.
    """
    if sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None)

            def move(done: int, total: int, *more: float | str) -> None:
                bar.update(task, completed=done, total=total, description=": ".join([what, *_texts(more)]))

            yield move
        return
    last, began = 0, time.monotonic()

    def line(done: int, total: int, *more: float | str) -> None:
        nonlocal last
        for text in _texts(more):
            say(f"{text} ({done + 1} of {total})")
            return
        tenth = 10 * done // max(1, total)
        if tenth > last and time.monotonic() - began > PATIENCE:
            last = tenth
            say(f"{what}: {done} of {total}")

    yield line


def _texts(values: Sequence[float | str]) -> list[str]:
    return [v for v in values if isinstance(v, str)]
