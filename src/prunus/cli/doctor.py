"""`prunus doctor`: what this machine can accelerate, measured; or what would make a saved folder fast on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunus.cli.output import Json, console
from prunus.cli.showing import check_out, counting, present
from prunus.core.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prunus.deploy.doctor import Case, Checkup
    from prunus.deploy.examined import Examination
    from prunus.deploy.installed import Library
    from prunus.report.analysis import Analysis, Cell, Plot, Table

WIDE = 30  # characters of the longest bar


def doctor(
    folder: Annotated[
        Path | None, typer.Argument(help="A folder that prunus wrote, to examine in place of the machine.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer measurements: some ten seconds.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads; default: PyTorch's.")] = None,
    size: Annotated[int, typer.Option("--size", min=64, help="Rows and columns of the layer that is timed.")] = 2048,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .html page, .svg picture, .json or .csv file.")
    ] = None,
    json: Json = False,
) -> None:
    """Say what this machine can accelerate: which sparsity pays at which batch, measured in about a minute.

    With a folder: whether it is whole, what pattern its weights have, and what that brings here.
    """
    from prunus.deploy.doctor import checkup
    from prunus.deploy.examined import examine, is_folder

    check_out(out)
    if folder is not None:
        found = examine(is_folder(folder), batches=(1, 64) if quick else (1, 8, 64), threads=threads, size=size)
        present(of_folder(found), json, out)
        if found.problems:
            raise typer.Exit(1)
        return
    with counting("measurements") as advance:
        seen = checkup(quick=quick, threads=threads, size=size, progress=advance)
    shown = of_machine(seen, _installed())
    if not json:
        chart(seen.cases)
    present(shown, json, out, left_out=1)  # the chart has them


def chart(cases: Sequence[Case]) -> None:
    """Bars on a terminal: how many times as fast as dense, a mark where they are equal."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="How many times as fast as dense", title_justify="left", show_edge=False)
    for name in ("pattern", "sparsity", "batch"):
        table.add_column(name)
    table.add_column("x", justify="right")
    table.add_column("| is dense", no_wrap=True)
    table.add_column("dense, ms", justify="right")
    table.add_column("ms", justify="right")
    table.add_column("through")
    most = max([c.ratio for c in cases if c.best != "dense"], default=1.0)
    equal = max(1, round(WIDE / max(most, 1.0)))
    for c in (c for c in cases if c.best != "dense"):
        length = round(WIDE * c.ratio / max(most, 1.0))
        bar = "".join("|" if i + 1 == equal else "█" if i < length else " " for i in range(WIDE))
        colour = "green" if c.ratio >= 1.1 else "red"
        table.add_row(
            c.pattern,
            f"{c.sparsity:.0%}",
            str(c.batch),
            f"{c.ratio:.2f}",
            f"[{colour}]{bar}[/]",
            f"{c.ms['dense']:.3g}",
            f"{c.ms[c.best]:.3g}",
            escape(c.best),
        )
    console().print(table)


def of_machine(seen: Checkup, libraries: Sequence[Library]) -> Analysis:
    """A checkup as it is shown."""
    from prunus.deploy.installed import pip_line
    from prunus.report.analysis import Analysis, Table

    missing = tuple(x for x in libraries if x.version is None)
    line = pip_line(missing)
    here = seen.machine
    rows: list[tuple[Cell, ...]] = [
        ("processor", here.cpu),
        ("instructions", ", ".join(n for n, there in here.features.items() if there) or "none of note"),
        ("without", ", ".join(n for n, there in here.features.items() if not there) or "nothing of note"),
        ("cores", f"{here.cores}, {here.usable:.3g} of them usable"),
        ("memory", f"{here.memory / 2**30:.1f} GiB{_limit(here.memory_limit)}"),
    ]
    if seen.multiples:
        told = ", ".join(f"{n}: {m or 'not kept'}" for n, m in seen.multiples.items())
        rows.append(("counts rounded to (--for)", told))
    for one in seen.limits:
        rates = f"{one.float32 / 1e9:.0f} GFLOP/s in float32, {one.bfloat16 / 1e9:.0f} in bfloat16"
        told = f"reads {one.read / 1e9:.1f} GB/s, multiplies {rates}"
        rows.append((f"{one.threads} thread{'s' if one.threads > 1 else ''}", f"{told}; granted {one.granted:.0%}"))
    rows += [
        ("card", f"{g.name}, compute capability {g.capability}, 2:4 {'yes' if g.two_four else 'no'}") for g in here.gpus
    ]
    rows.append(("sparse kernels", seen.kernels or f"none: {seen.missing}"))
    ways = list(dict.fromkeys(n for c in seen.cases for n in c.ms))
    measured = tuple(
        (c.pattern, c.sparsity, c.batch, c.ratio, c.best, *(c.ms.get(n) for n in ways)) for c in seen.cases
    )
    steps = tuple((s.runtime, s.width, s.ms, s.rate / 1e9) for s in seen.steps)
    there = tuple((x.extra, x.name, x.wanted, x.version or "missing") for x in libraries)
    tables: list[Table] = [
        Table(
            "Pattern, sparsity and batch",
            ("pattern", "sparsity", "batch", "x", "through", *(f"{n}, ms" for n in ways)),
            measured,
        ),
        Table("This machine", ("what", "found"), tuple(rows)),
        Table("Widths of a 3x3 convolution on 28 x 28", ("runtime", "channels", "ms", "GFLOP/s"), steps),
        Table("Optional libraries", ("extra", "library", "wanted", "found"), there),
    ]
    plural = "s" if seen.threads > 1 else ""
    note = (
        f"A linear map of {seen.size} x {seen.size} by itself, float32, {seen.threads} thread{plural}: in a network "
        "what lies between layers is left, and weights do not stay in the cache. prunus deploy measures networks."
    )
    return Analysis(
        name="doctor",
        command="prunus doctor",
        title=f"What {here.cpu} can accelerate",
        source="measured on this machine, dense and sparse in turn in one process",
        says=seen.says + ((f"To have everything: {line}",) if line else ()),
        tables=tuple(tables),
        plots=tuple(_plots(seen)),
        data=seen.to_dict() | {"libraries": [vars(x) for x in libraries], "pip": line},
        notes=(note,),
        facts={"size": seen.size, "threads": seen.threads, "seconds": round(seen.seconds, 1)},
    )


def _plots(seen: Checkup) -> list[Plot]:
    """Ratios over sparsity for every pattern and batch, and the staircase of widths."""
    from prunus.report.analysis import Line, Plot

    lines = []
    for pattern, batch in dict.fromkeys((c.pattern, c.batch) for c in seen.cases if c.pattern != "2:4"):
        own = [c for c in seen.cases if (c.pattern, c.batch) == (pattern, batch) and c.best != "dense"]
        tips = tuple(f"{c.sparsity:.0%}: {c.ratio:.2f} x through {c.best}" for c in own)
        lines.append(Line(f"{pattern}, batch {batch}", tuple((c.sparsity, c.ratio) for c in own), tips))
    plots = [
        Plot("What sparsity brings", "sparsity", "dense time / sparse time", tuple(lines), sparsity_x=True, log_y=True)
    ]
    stairs = [
        Line(name, tuple((float(s.width), s.rate / 1e9) for s in seen.steps if s.runtime == name))
        for name in dict.fromkeys(s.runtime for s in seen.steps)
    ]
    if stairs:
        plots.append(Plot("What widths bring", "channels of a 3x3 convolution", "GFLOP/s", tuple(stairs)))
    return plots


def of_folder(found: Examination) -> Analysis:
    """An examination as it is shown."""
    from prunus.report.analysis import Analysis, Table

    patterns = tuple((p.pattern, p.tensors, p.numbers, p.sparsity) for p in found.patterns)
    cases = tuple((c.pattern, c.sparsity, c.batch, c.ratio, c.best) for c in found.cases)
    return Analysis(
        name="doctor",
        command="prunus doctor",
        title=f"{found.folder}: {found.network or 'a network'} pruned by {found.recipe or 'a recipe'}",
        source="the folder's own manifest, and measurements on this machine",
        says=found.says,
        tables=(
            Table("Patterns of zeros", ("pattern", "tensors", "numbers", "sparsity"), patterns),
            Table("What they bring here", ("pattern", "sparsity", "batch", "x", "through"), cases),
            Table("Widths that are no multiple of 8", ("axis", "width"), found.odd),
        ),
        plots=(),
        data=found.to_dict(),
        facts={"bytes": found.bytes},
    )


def _limit(limit: int | None) -> str:
    return "" if limit is None else f", {limit / 2**30:.1f} GiB of them granted"


def _installed() -> tuple[Library, ...]:
    """The optional libraries; none where prunus runs from its source and does not know them."""
    from prunus.deploy.installed import libraries

    try:
        return libraries()
    except SpecError:
        return ()
