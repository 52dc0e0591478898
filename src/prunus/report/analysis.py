"""What an analysis found, in the form that is shown: sentences, tables, plots, and the plain data behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Line:
    """A curve of a plot.

    Attributes:
        name: as the legend has it.
        points: (x, y), in the order in which they are joined; those that are not finite are left out.
        tips: what is said of every point; empty for the numbers alone.
        apart: how far up and down every point varies; empty for not at all.
        joined: whether the points are one curve.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    tips: tuple[str, ...] = ()
    apart: tuple[float, ...] = ()
    joined: bool = True


@dataclass(frozen=True)
class Plot:
    """Curves over one pair of axes.

    Attributes:
        title: what is to be seen.
        x, y: what the axes measure.
        sparsity_x: x is a share that is removed; where it comes close to 1, equal distances are equal factors in what
            is kept.
        percent_y: fractions that are written as percentages.
        log_x, log_y: equal distances are equal factors; numbers that are not positive are left out.
        marks: (x, what it is): dashed upright lines.
        names_x: a name for every whole x from 0, where x is a position (of a layer).
    """

    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    sparsity_x: bool = False
    percent_y: bool = False
    log_x: bool = False
    log_y: bool = False
    marks: tuple[tuple[float, str], ...] = ()
    names_x: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows under columns; numbers stay numbers until they are shown. `digits` is how floats are written."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    digits: str = ".4g"

    def shown(self, cell: Cell) -> str:
        """A cell as it is read."""
        if isinstance(cell, bool) or cell is None:
            return {True: "yes", False: "no", None: "–"}[cell]
        if isinstance(cell, int):
            return f"{cell:,}"
        return f"{cell:{self.digits}}" if isinstance(cell, float) else cell

    def csv(self) -> str:
        """As a file of comma-separated values."""
        from prunus.report.contrast_data import table  # the command line lists analyses without what pages need

        return table(self.columns, self.rows)

    def numeric(self, column: int) -> bool:
        """Whether a column holds numbers."""
        found = [row[column] for row in self.rows if row[column] is not None]
        return bool(found) and all(isinstance(c, int | float) for c in found)


@dataclass(frozen=True)
class Analysis:
    """Everything that a command shows, prints as JSON, or writes to a page.

    Attributes:
        name: of the command; what it makes are called after it.
        title: what was analysed.
        source: the paper whose definition it is.
        says: the findings in sentences, the most important first.
        tables, plots: in the order in which they are read.
        data: plain JSON values; what `--json` prints.
        notes: what to be careful about.
        facts: how it was made: data, seed, counts.
        command: as it is typed; by default, that it is one of `prunus analyze`.
    """

    name: str
    title: str
    source: str
    says: tuple[str, ...]
    tables: tuple[Table, ...]
    plots: tuple[Plot, ...]
    data: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    command: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        told = {"analysis": self.name, "title": self.title, "source": self.source, "facts": dict(self.facts)}
        return {**told, **self.data, "says": list(self.says), "notes": list(self.notes)}


def columns(names: Sequence[str]) -> tuple[str, ...]:
    """Names as columns: of paths only what tells them apart.

    >>> columns(["runs/a/pruned", "runs/b/pruned"])
    ('a/pruned', 'b/pruned')
    """
    parts = [n.rstrip("/").split("/") for n in names]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        short = ["/".join(p[-depth:]) for p in parts]
        if len(set(short)) == len(set(names)):
            return tuple(short)
    return tuple(names)
