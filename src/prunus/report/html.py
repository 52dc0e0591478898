"""The report as one page that holds everything it needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

from jinja2 import Environment
from markupsafe import Markup

from prunus.report import figures, offline, words
from prunus.report.axes import SparsityAxis
from prunus.report.plots import (
    accuracy_svg,
    dense_accuracy,
    density_svg,
    has_accuracy,
    indices,
    latency_svg,
    marker_svg,
    titled,
)
from prunus.report.records import MethodRecord, Report
from prunus.report.svg import STYLE, el, variables

WIDE, NARROW = 920, 400


def page(report: Report) -> str:
    """The whole document. Content is complete without JavaScript, which only sorts tables and switches the colours."""
    environment = _environment()
    script, policy = offline.script(environment, "report.js")
    numbers = indices(report)
    timed = [m for m in report.methods if m.latency is not None]
    times = [t.q75_ms for m in timed for t in (m.latency, m.latency_dense) if t is not None and math.isfinite(t.q75_ms)]
    return environment.get_template("report.html").render(
        r=report,
        policy=policy,
        script=script,
        style=Markup(STYLE),
        light=Markup(variables()),
        dark=Markup(variables(dark=True)),
        index={m.name: numbers[m.name] for m in report.methods},
        dense=dense_accuracy(report),
        wide=Markup(accuracy_svg(report, width=WIDE, page=True)) if has_accuracy(report) else None,
        narrow=Markup(accuracy_svg(report, width=NARROW, height=400, page=True)) if has_accuracy(report) else None,
        timed=timed,
        longest=1.03 * max(times, default=0.0),
        stretched=any(SparsityAxis.stretches(p.sparsity) for c in report.curves for p in c.points),
        gone=any(layer.kept == 0 < layer.weights for m in report.methods for layer in m.layers),
        grid=taxonomy_grid(report),
        layers=layer_rows(report),
    )


@cache
def _environment() -> Environment:
    environment = offline.environment()
    environment.globals.update(
        f=figures,
        words=words,
        quotient=figures.quotient,
        share=figures.share,
        isnan=math.isnan,
        titled=titled,
        density_svg=density_svg,
        latency_svg=latency_svg,
        marker_svg=marker_svg,
        structure_glyph=structure_glyph,
        when_glyph=when_glyph,
    )
    return environment


def taxonomy_grid(report: Report) -> list[tuple[str, list[tuple[str, list[tuple[int, MethodRecord]]]]]]:
    """Rows of (structure, cells of (when, methods with their position)); values beyond the survey's come last."""

    def places(axis: str, usual: dict[str, str]) -> list[str]:
        used = dict.fromkeys(m.taxonomy.get(axis, "unknown") for m in report.methods)
        return [*usual, *(value for value in used if value not in usual)]

    def at(structure: str, when: str) -> list[tuple[int, MethodRecord]]:
        return [
            (i, m)
            for i, m in enumerate(report.methods)
            if (m.taxonomy.get("structure", "unknown"), m.taxonomy.get("when", "unknown")) == (structure, when)
        ]

    columns = places("when", words.WHEN)
    return [(row, [(column, at(row, column)) for column in columns]) for row in places("structure", words.STRUCTURE)]


def layer_rows(report: Report) -> list[tuple[str, str, int, list[float | None]]]:
    """(layer, kind, weights, density per method or None where it has no such layer), in the order of the networks."""
    known: dict[str, tuple[str, int]] = {}
    for method in report.methods:
        for layer in method.layers:
            known.setdefault(layer.layer, (layer.kind, layer.weights))
    by_method = [{layer.layer: layer.density for layer in method.layers} for method in report.methods]
    return [(name, *facts, [densities.get(name) for densities in by_method]) for name, facts in known.items()]


def structure_glyph(structure: str) -> Markup:
    """A small weight matrix with what such a method leaves; rows are output channels."""
    patterns: dict[str, Callable[[int, int], bool]] = {
        "unstructured": lambda row, column: (row * 7 + column * 5 + row * column) % 8 < 3,
        "semi-structured": lambda row, column: (column % 4) in ((0, 3), (1, 2), (0, 1), (2, 3), (0, 2), (1, 3))[row],
        "structured": lambda row, column: row in (0, 2, 5),
    }
    keep = patterns.get(structure)
    if keep is None:
        return Markup("")
    cells = [
        el("rect", class_="on" if keep(row, column) else "off", x=column * 7, y=row * 7, width=6, height=6, rx=1)
        for row in range(6)
        for column in range(8)
    ]
    return el("svg", *cells, viewBox="0 0 55 41", width=55, height=41, aria_hidden="true", class_="glyph")


def when_glyph(when: str) -> Markup:
    """A training run from left to right, and where the cut falls."""
    cut = {"before": (8,), "during": (32, 48, 64), "after": (88,)}.get(when)
    if cut is None:
        return Markup("")
    line = el("line", class_="run", x1=16, x2=80, y1=10, y2=10)
    ends = [el("line", class_="run thin", x1=a, x2=b, y1=10, y2=10) for a, b in ((0, 16), (80, 96))]
    marks = [el("path", class_="cut", d=f"M{x} 3V17") for x in cut]
    return el("svg", line, *ends, *marks, viewBox="0 0 96 20", width=96, height=20, aria_hidden="true", class_="glyph")
