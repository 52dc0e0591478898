"""Pictures: data in, SVG text out. Nothing is drawn that is not in the records."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from prunus.report.axes import SparsityAxis, accuracy_range, spread
from prunus.report.figures import exact, milliseconds, percent, span
from prunus.report.records import Latency, MethodRecord, Point, Report
from prunus.report.svg import SERIES, el, inline, marker, number, standalone, tip

Scale = Callable[[float], float]
CHARACTER = 6.7  # pixels per character of the plots' 12.5 px sans-serif, on the safe side


@dataclass(frozen=True)
class _Series:
    """A curve, or a single method's point where `line` is false."""

    name: str
    index: int
    points: tuple[Point, ...]
    line: bool


def indices(report: Report) -> dict[str, int]:
    """Curve or method -> number of its colour and shape; a curve named like a method shares the method's."""
    found: dict[str, int] = {}
    for i, method in enumerate(report.methods):
        found.setdefault(method.name, i)
        found.setdefault(method.title, i)
    free = len(report.methods)
    for curve in report.curves:
        if curve.name not in found:
            found[curve.name] = free
            free += 1
    return found


def dense_accuracy(report: Report) -> float | None:
    """The dense network's accuracy: the one that most methods started from."""
    known = [m.accuracy_before for m in report.methods if m.accuracy_before is not None]
    counts = Counter(a for a in known if not math.isnan(a))
    return max(counts, key=lambda a: (counts[a], a)) if counts else None


def titled(report: Report, name: str) -> str:
    """A curve's name as it is shown: a method's usual name where the curve bears the method's name."""
    return next((m.title for m in report.methods if m.name == name), name)


def _series(report: Report) -> list[_Series]:
    numbers = indices(report)
    found = []
    for curve in report.curves:
        # At a sparsity of exactly 1 nothing is left, and a stretched axis has no end.
        points = [p for p in curve.points if not math.isnan(p.accuracy + p.sparsity) and p.sparsity < 1.0]
        if points:
            ordered = tuple(sorted(points, key=lambda p: p.sparsity))
            found.append(_Series(titled(report, curve.name), numbers[curve.name], ordered, line=True))
    for method in report.methods:
        reached = method.accuracy_pruned if method.accuracy_after is None else method.accuracy_after
        if reached is None or math.isnan(reached + method.sparsity) or not 0.0 <= method.sparsity < 1.0:
            continue
        point = Point(sparsity=method.sparsity, accuracy=reached)
        found.append(_Series(method.title, numbers[method.name], (point,), line=False))
    return found


def has_accuracy(report: Report) -> bool:
    """Whether there is anything to plot against sparsity."""
    return bool(_series(report))


def shortened(text: str, most: int) -> str:
    """Cut at `most` characters, with an ellipsis."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def accuracy_svg(report: Report, *, width: int = 920, height: int = 430, page: bool = False) -> str:
    """Accuracy against sparsity: a line per curve, a ring per method at its own budget, the dense network dashed.

    With `page` the SVG relies on the page's style and carries no background; else it is a file of its own. Below 600
    pixels of width the labels at the lines' ends are left to the legend.
    """
    series = _series(report)
    dense = dense_accuracy(report)
    label = "Accuracy against sparsity" + (f", dense network at {percent(dense)}" if dense is not None else "")
    if not series:
        body = el("text", "No accuracy was measured.", x=width / 2, y=height / 2, text_anchor="middle")
        return str(inline(body, width, height, label)) if page else standalone(body, width, height, label)
    direct = width >= 600
    legend, top = _legend(series, dense, width)
    height += int(top) - 16  # rows of the legend beyond the first do not shrink the plot
    left, bottom = 58.0, height - 66.0
    longest = max(len(shortened(s.name, 24)) for s in [s for s in series if s.line] or series)
    right = width - (26.0 + CHARACTER * max(longest, 13) if direct else 18.0)
    top += 40.0
    x = SparsityAxis(max(p.sparsity for s in series for p in s.points), left, right)
    values = [p.accuracy + sign * _deviation(p) for s in series for p in s.points for sign in (-1, 1)]
    values += [] if dense is None else [dense]
    low, high, step = accuracy_range([min(max(v, 0.0), 1.0) for v in values])

    def y(accuracy: float) -> float:
        return bottom - (bottom - top) * (min(max(accuracy, low), high) - low) / (high - low)

    parts = [legend, _frame(x, y, low, high, step, top, bottom)]
    if dense is not None:
        told = tip(f"dense network: {percent(dense)}")
        parts.append(el("line", told, class_="dense", x1=left, x2=right, y1=y(dense), y2=y(dense)))
    parts += [_curve(s, x, y) if s.line else _ring(s, x, y) for s in series]
    if direct:
        parts.append(_labels(series, dense, x, y, top, bottom))
    body = Markup("").join(parts)
    return str(inline(body, width, height, label)) if page else standalone(body, width, height, label)


def _legend(series: list[_Series], dense: float | None, width: int) -> tuple[Markup, float]:
    """Items from left to right in as many rows as they need, and the height that they took."""
    parts: list[Markup] = []
    lined = {s.index for s in series if s.line}
    items = [s for s in series if s.line or s.index not in lined]
    # The dense line is named first: everything else is read against it.
    rings = any(not s.line for s in series)
    x, y = 8.0, 16.0

    def room(text: str) -> None:
        nonlocal x, y
        if x > 8.0 and x + 32 + CHARACTER * len(text) > width:
            x, y = 8.0, y + 21.0

    if dense is not None:
        text = f"dense network {percent(dense)}"
        parts.append(el("line", class_="dense", x1=x, x2=x + 22, y1=y - 4, y2=y - 4))
        parts.append(el("text", text, x=x + 28, y=y))
        x += 44 + CHARACTER * len(text)
    for s in items:
        name = shortened(s.name, 34)
        room(name)
        colour = f"s{s.index % SERIES}"
        if s.line:
            parts.append(el("line", class_=f"curve {colour}", x1=x, x2=x + 22, y1=y - 4, y2=y - 4))
            parts.append(marker(s.index, x + 11, y - 4, class_=f"dot f{s.index % SERIES}"))
        else:
            parts.append(marker(s.index, x + 11, y - 4, size=5.0, class_=f"ring {colour}"))
        parts.append(el("text", name, x=x + 28, y=y))
        x += 44 + CHARACTER * len(name)
    if rings and lined:
        text = "ring: a method at its own budget"
        room(text)
        parts.append(el("circle", class_="ring axis", cx=x + 11, cy=y - 4, r=6.0))
        parts.append(el("text", text, x=x + 28, y=y))
        x += 48 + CHARACTER * len(text)
    return Markup("").join(parts), y


def _frame(x: SparsityAxis, y: Scale, low: float, high: float, step: float, top: float, bottom: float) -> Markup:
    left, right = x.left, x.right
    roomy = right - left > 480
    parts: list[Markup] = []
    decimals = 0 if step >= 0.00999 else 1 if step >= 0.000999 else 2
    for i in range(round((high - low) / step + 0.499) + 1):
        mark = low + i * step
        if mark > high + 1e-9:
            break
        parts.append(el("line", class_="grid", x1=left, x2=right, y1=y(mark), y2=y(mark)))
        parts.append(el("text", percent(mark, decimals), x=left - 8, y=y(mark) + 4, text_anchor="end"))
    for mark in x.ticks(apart=62.0 if roomy else 42.0):
        fine = 1 if (mark * 100) % 1 > 1e-6 and (mark * 100) % 1 < 1 - 1e-6 else 0
        parts.append(el("line", class_="axis", x1=x(mark), x2=x(mark), y1=bottom, y2=bottom + 5))
        parts.append(el("text", percent(mark, fine), x=x(mark), y=bottom + 19, text_anchor="middle"))
        if roomy:
            kept = f"{percent(1 - mark, fine)} kept"
            parts.append(el("text", kept, class_="faint", x=x(mark), y=bottom + 33, text_anchor="middle"))
    parts.append(el("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom))
    parts.append(el("text", "Accuracy", class_="strong", x=8.0, y=top - 16))
    title = el("tspan", "Sparsity: share of the parameters removed", class_="strong")
    parts.append(el("text", title, x=(left + right) / 2, y=bottom + (56 if roomy else 42), text_anchor="middle"))
    return Markup("").join(parts)


def _deviation(point: Point) -> float:
    return point.std if point.std is not None and math.isfinite(point.std) else 0.0


def _told(name: str, point: Point) -> str:
    deviation = f" ± {percent(point.std)}" if _deviation(point) else ""
    return f"{name}: accuracy {percent(point.accuracy)}{deviation} at {percent(point.sparsity, 1)} sparsity"


def _curve(series: _Series, x: SparsityAxis, y: Scale) -> Markup:
    colour = series.index % SERIES
    path = "M" + "L".join(f"{number(x(p.sparsity))} {number(y(p.accuracy))}" for p in series.points)
    parts = [el("path", class_=f"curve s{colour}", d=path)]
    for p in series.points:
        if _deviation(p):
            at, up, down = x(p.sparsity), y(p.accuracy + _deviation(p)), y(p.accuracy - _deviation(p))
            caps = "".join(f"M{number(at - 4)} {number(end)}h8" for end in (up, down))
            parts.append(el("path", class_=f"whisker s{colour}", d=f"M{number(at)} {number(up)}V{number(down)}{caps}"))
        told = tip(_told(series.name, p))
        parts.append(marker(series.index, x(p.sparsity), y(p.accuracy), told, class_=f"dot f{colour}"))
    return Markup("").join(parts)


def _ring(series: _Series, x: SparsityAxis, y: Scale) -> Markup:
    (point,) = series.points
    told = tip(_told(f"{series.name}, at its own budget", point))
    colour = f"ring s{series.index % SERIES}"
    return marker(series.index, x(point.sparsity), y(point.accuracy), told, size=7.5, class_=colour)


def _labels(series: list[_Series], dense: float | None, x: SparsityAxis, y: Scale, top: float, bottom: float) -> Markup:
    """Names at the right edge, moved apart where lines end together, each with a leader from where its line ends."""
    right = x.right
    # Rings lie in the middle of the plot: leaders to them would cross the curves, and the legend names them.
    named = [s for s in series if s.line] or series
    ends = [(x(s.points[-1].sparsity), y(s.points[-1].accuracy)) for s in named]
    wanted = [end[1] for end in ends] + ([y(dense)] if dense is not None else [])
    placed = spread(wanted, 16.0, top, bottom)
    parts: list[Markup] = []
    for s, (from_x, from_y), to_y in zip(named, ends, placed, strict=False):
        if right - from_x > 14 or abs(to_y - from_y) > 4:
            leader = f"M{number(from_x + 7)} {number(from_y)}L{number(max(right - 6, from_x + 7))} {number(to_y)}h8"
            parts.append(el("path", class_="leader", d=leader))
        name = shortened(s.name, 24)
        parts.append(el("text", tip(s.name), name, class_=f"f{s.index % SERIES}", x=right + 8, y=to_y + 4))
    if dense is not None:
        parts.append(el("text", f"dense {percent(dense)}", x=right + 8, y=placed[-1] + 4))
    return Markup("").join(parts)


def density_svg(method: MethodRecord, index: int = 0) -> Markup:
    """Layer-wise densities as one strip: a layer's width is its share of the weights, the filled height what is kept.

    Holds no text, so it may be stretched to any width. A layer is at least 0.6 % wide, or small ones would not be seen.
    """
    total = sum(layer.weights for layer in method.layers) or 1
    widths = [max(layer.weights / total, 0.006) for layer in method.layers]
    scale = 1000.0 / (sum(widths) or 1.0)
    parts, x = [], 0.0
    for layer, share in zip(method.layers, widths, strict=True):
        width = share * scale
        gap = min(1.6, width * 0.2)
        density = 0.0 if math.isnan(layer.density) else min(layer.density, 1.0)
        told = (
            f"{layer.layer} ({layer.kind}): {exact(layer.kept)} of {exact(layer.weights)} weights kept, "
            f"density {percent(layer.density, 1)}"
        )
        box = el("rect", class_="track" if layer.kept else "track gone", x=x, y=0.0, width=width - gap, height=100.0)
        fill = el(
            "rect", class_=f"f{index % SERIES}", x=x, y=100.0 * (1 - density), width=width - gap, height=100.0 * density
        )
        parts.append(el("g", tip(told), box, fill))
        x += width
    kept = sum(layer.kept for layer in method.layers)
    return el(
        "svg",
        *parts,
        viewBox="0 0 1000 100",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{method.title}: {exact(kept)} of {exact(total)} weights kept in {len(method.layers)} layers; "
        "the table below has every layer",
        class_="strip",
    )


def latency_svg(time: Latency, longest: int | float, *, index: int | None, name: str) -> Markup:
    """Median as a bar, the middle half of the runs as a thin bar on it; `longest` ms is the full width.

    Holds no text, so it may be stretched to any width.
    """
    scale = 1000.0 / longest if longest > 0 and math.isfinite(longest) else 0.0
    low, middle, high = (scale * v if math.isfinite(v) else 0.0 for v in (time.q25_ms, time.median_ms, time.q75_ms))
    colour = "dense-bar" if index is None else f"f{index % SERIES}"
    told = f"{name}: median {milliseconds(time.median_ms)}, middle half {span(time.q25_ms, time.q75_ms)}"
    return el(
        "svg",
        tip(told),
        el("rect", class_="track", x=0.0, y=0.0, width=1000.0, height=100.0),
        el("rect", class_=colour, x=0.0, y=0.0, width=middle, height=100.0),
        el("rect", class_="iqr", x=low, y=36.0, width=max(high - low, 2.0), height=28.0),
        viewBox="0 0 1000 100",
        preserveAspectRatio="none",
        role="img",
        aria_label=told,
        class_="timebar",
    )


def marker_svg(index: int, size: int = 16) -> Markup:
    """A series' marker, to stand beside its name."""
    middle = size / 2
    body = marker(index, middle, middle, size=size * 0.34, class_=f"f{index % SERIES}")
    return el("svg", body, viewBox=f"0 0 {size} {size}", width=float(size), height=float(size), aria_hidden="true")
