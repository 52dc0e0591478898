"""The summary for a terminal of 100 columns or more."""

from __future__ import annotations

from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunus.report import figures
from prunus.report.markdown import conditions
from prunus.report.records import MethodRecord, Report

_MOODS = (("not", "yellow"), ("faster", "green"), ("slower", "red"))


def print_table(report: Report, console: Console) -> None:
    """Print the summary: accuracy, parameters, MACs, file and latency, each ratio with its denominator in words.

    Colours follow the console, which honours `NO_COLOR`; no information is in the colour alone.
    """
    console.print(summary_table(report))
    for line in footnotes(report):
        console.print(Text(line, style="dim"))


def summary_table(report: Report) -> Table:
    """The table itself; each cell has the figure, what it was, and the ratio that the heading names."""
    found = Table(
        title=Text(report.title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        collapse_padding=True,
        leading=1,
    )
    found.add_column("Method", min_width=12, overflow="fold")
    for head, ratio in (
        ("Accuracy", "delivered"),
        ("Params", "dense/kept"),
        ("MACs run", "dense/run"),
        ("On disk", "dense/pruned"),
        ("Latency", "middle half"),
        ("In words", "dense/pruned"),
    ):
        justify: Literal["left", "right"] = "left" if head == "In words" else "right"
        found.add_column(Text.assemble(head, "\n", (ratio, "dim")), justify=justify, no_wrap=True)
    for m in report.methods:
        found.add_row(
            Text(m.title, style="bold"),
            _accuracy(m),
            _amount(m.params_kept, m.params_dense),
            _amount(m.macs_kept, m.macs_dense),
            _amount(m.bytes_kept, m.bytes_dense, "B"),
            _latency(m),
            _verdict(m),
        )
    return found


def footnotes(report: Report) -> list[str]:
    """What the table's numbers mean, and under which conditions the times were measured."""
    lines = ["Ratios are dense / pruned: above 1, the pruned network needs less. pp: percentage points."]
    timed = [m.latency for m in report.methods if m.latency is not None]
    ways = list(dict.fromkeys(conditions(latency) for latency in timed))
    if ways:
        lines.append(f"Latency: {'; '.join(ways)}.")
    if any(not m.compacted for m in report.methods):
        lines.append(
            "Masked weights are zeros: dense kernels still multiply them, so a mask alone makes nothing faster."
        )
    return lines


def _lines(first: str, *more: str, style: str = "") -> Text:
    """The figure, and under it what it is to be read against."""
    below = "".join(f"\n{line}" for line in more if line)
    return Text.assemble((first, style), (below, "dim"))


def _missing() -> Text:
    return Text(figures.MISSING, style="dim")


def _accuracy(m: MethodRecord) -> Text:
    reached = m.accuracy_pruned if m.accuracy_after is None else m.accuracy_after
    change = figures.points(m.accuracy_before, reached)
    before = "" if m.accuracy_before is None else f"was {figures.percent(m.accuracy_before)}"
    return _lines(figures.percent(reached), before, f"{change} pp" if change else "")


def _amount(kept: int | None, dense: int | None, unit: str = "") -> Text:
    if kept is None:
        return _missing()
    quotient = figures.quotient(dense, kept)
    total = "" if dense is None else f"of {figures.si(dense, unit)}"
    return _lines(figures.si(kept, unit), total, "" if quotient is None else figures.times(quotient))


def _latency(m: MethodRecord) -> Text:
    if m.latency is None:
        return _missing()
    dense = "" if m.latency_dense is None else f"was {figures.milliseconds(m.latency_dense.median_ms)}"
    spread = figures.span(m.latency.q25_ms, m.latency.q75_ms)
    return _lines(figures.milliseconds(m.latency.median_ms), spread, dense)


def _verdict(m: MethodRecord) -> Text:
    found = m.latency_ratio
    if found is None:
        return _missing()
    style = next((style for word, style in _MOODS if word in found.verdict), "")
    spread = f"{found.q25:.2f} to {found.q75:.2f}"
    return _lines(found.verdict, figures.times(found.median), spread, style=style)
