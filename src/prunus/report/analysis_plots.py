"""Pictures of an analysis: curves over plain or logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from markupsafe import Markup

from prunus.report.analysis import Line, Plot
from prunus.report.axes import SparsityAxis, nice_step, spread
from prunus.report.figures import percent
from prunus.report.plots import CHARACTER, shortened
from prunus.report.svg import SERIES, el, inline, marker, number, standalone, tip

WIDE, HIGH = 920, 400
MOST = 12  # names at the right edge; more are told by pointing at a line
DOTTED = 60  # points up to which a line shows each of them


class Axis:
    """Values -> pixels, with marks on round numbers."""

    def __init__(
        self, values: Sequence[float], start: float, end: float, *, log: bool, percents: bool, sparsity: bool = False
    ) -> None:
        self.log, self.percents, self.start, self.end = log, percents, start, end
        low, high = min(values), max(values)
        self.stretched = sparsity and SparsityAxis.stretches(high)
        if self.stretched:
            self.low, self.high = 0.0, -1.02 * math.log10(1.0 - high)
        elif log:
            self.low, self.high = math.log10(low), math.log10(high)
            room = 0.04 * (self.high - self.low) or 0.5
            self.low, self.high = self.low - room, self.high + room
        else:
            room = 0.05 * (high - low) or max(abs(high), 1e-3) * 0.05
            # A curve of shares does not hang below nothing or above all.
            self.low = max(low - room, 0.0) if low >= 0 else low - room
            self.high = min(high + room, 1.0) if percents and high <= 1 else high + room

    def __call__(self, value: float) -> float:
        at = -math.log10(1.0 - value) if self.stretched else math.log10(value) if self.log else value
        return self.start + (self.end - self.start) * (at - self.low) / (self.high - self.low)

    def ticks(self, apart: float) -> list[float]:
        """Round values inside the axis."""
        if self.stretched:
            return SparsityAxis(1.0 - 10.0**-self.high, self.start, self.end, stretched=True).ticks(apart)
        room = max(2, int(abs(self.end - self.start) / apart))
        if self.log:
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            fine = [k * 10.0**e for e in decades for k in (1, 2, 5) if self.low <= math.log10(k) + e <= self.high]
            if len(fine) <= room:
                return fine
            apart_by = max(1, math.ceil((self.high - self.low) / room))
            return [10.0**e for e in range(math.ceil(self.low), math.floor(self.high) + 1, apart_by)]
        step = nice_step(self.high - self.low, room)
        return [k * step for k in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]

    def written(self, value: float) -> str:
        """A mark as it is read."""
        if self.percents:
            return percent(value, 0 if abs(value * 100 - round(value * 100)) < 1e-6 else 1)
        return f"{value:.4g}"


def plot_svg(plot: Plot, *, page: bool = False) -> str:
    """The plot as SVG; with `page` for a page that has the style, else a file of its own."""
    lines = [_usable(line, plot) for line in plot.lines]
    drawn = [(i, line) for i, line in enumerate(lines) if line.points]
    label = f"{plot.title}: {plot.y} against {plot.x}"
    if not drawn:
        body = el("text", "There is nothing to plot.", x=WIDE / 2, y=HIGH / 2, text_anchor="middle")
        return str(inline(body, WIDE, HIGH, label)) if page else standalone(body, WIDE, HIGH, label)
    named = len(drawn) <= MOST and len(drawn) > 1
    longest = max(len(shortened(line.name, 26)) for _, line in drawn) if named else 0
    left, top, right, bottom = 64.0, 40.0, WIDE - (24.0 + CHARACTER * longest), HIGH - 56.0
    across = [x for _, line in drawn for x, _ in line.points] + [m for m, _ in plot.marks]
    up = [y + sign * d for _, line in drawn for (_, y), d in _varying(line) for sign in (-1, 1)]
    up = [v for v in up if v > 0] if plot.log_y else up
    x = Axis(across, left, right, log=plot.log_x, percents=plot.sparsity_x, sparsity=plot.sparsity_x)
    y = Axis(up, bottom, top, log=plot.log_y, percents=plot.percent_y)
    parts = [_frame(plot, x, y)]
    parts += [_mark(i, at, what, x, y) for i, (at, what) in enumerate(plot.marks)]
    parts += [_curve(i, line, plot, x, y) for i, line in drawn]
    if named:
        parts.append(_names(drawn, x, y))
    body = Markup("").join(parts)
    return str(inline(body, WIDE, HIGH, label)) if page else standalone(body, WIDE, HIGH, label)


def _usable(line: Line, plot: Plot) -> Line:
    """The line without points that the axes have no place for."""
    keep = [
        i
        for i, (x, y) in enumerate(line.points)
        if math.isfinite(x + y) and (x > 0 or not plot.log_x) and (y > 0 or not plot.log_y)
    ]
    return replace(
        line,
        points=tuple(line.points[i] for i in keep),
        tips=tuple(line.tips[i] for i in keep) if line.tips else (),
        apart=tuple(line.apart[i] if math.isfinite(line.apart[i]) else 0.0 for i in keep) if line.apart else (),
    )


def _varying(line: Line) -> list[tuple[tuple[float, float], float]]:
    return list(zip(line.points, line.apart or (0.0,) * len(line.points), strict=True))


def _frame(plot: Plot, x: Axis, y: Axis) -> Markup:
    parts: list[Markup] = []
    for mark in y.ticks(46.0):
        parts.append(el("line", class_="grid", x1=x.start, x2=x.end, y1=y(mark), y2=y(mark)))
        parts.append(el("text", y.written(mark), x=x.start - 8, y=y(mark) + 4, text_anchor="end"))
    if plot.names_x:
        every = max(1, math.ceil(len(plot.names_x) / ((x.end - x.start) / 22)))
        for i, name in enumerate(plot.names_x):
            if x.low <= i <= x.high:
                at = x(float(i))
                parts.append(el("line", class_="axis", x1=at, x2=at, y1=y.start, y2=y.start + 5))
                if i % every == 0:
                    parts.append(el("text", tip(name), str(i + 1), x=at, y=y.start + 19, text_anchor="middle"))
    else:
        for mark in x.ticks(70.0):
            parts.append(el("line", class_="axis", x1=x(mark), x2=x(mark), y1=y.start, y2=y.start + 5))
            parts.append(el("text", x.written(mark), x=x(mark), y=y.start + 19, text_anchor="middle"))
    parts.append(el("line", class_="axis", x1=x.start, x2=x.end, y1=y.start, y2=y.start))
    log_y = " (logarithmic)" if plot.log_y else ""
    parts.append(el("text", plot.y + log_y, class_="strong", x=8.0, y=16.0))
    log_x = " (logarithmic)" if plot.log_x else ""
    middle = (x.start + x.end) / 2
    parts.append(el("text", plot.x + log_x, class_="strong", x=middle, y=y.start + 42, text_anchor="middle"))
    return Markup("").join(parts)


def _mark(index: int, at: float, what: str, x: Axis, y: Axis) -> Markup:
    """An upright line with its name, each name lower than the last so that lines may coincide."""
    side = -1 if x(at) > (x.start + x.end) / 2 else 1
    anchor = "end" if side < 0 else "start"
    line = el("line", tip(f"{what}: {x.written(at)}"), class_="dense", x1=x(at), x2=x(at), y1=y.end, y2=y.start)
    return line + el("text", what, class_="faint", x=x(at) + 6 * side, y=y.end + 10 + 14 * index, text_anchor=anchor)


def _curve(index: int, line: Line, plot: Plot, x: Axis, y: Axis) -> Markup:
    colour = index % SERIES
    path = "M" + "L".join(f"{number(x(a))} {number(y(b))}" for a, b in line.points)
    parts = [el("path", tip(line.name), class_=f"curve s{colour}", d=path)] if line.joined else []
    if len(line.points) > DOTTED and line.joined:
        return parts[0]
    for i, ((a, b), apart) in enumerate(_varying(line)):
        above = f" ± {y.written(apart)}" if apart else ""
        at = plot.names_x[int(a)] if plot.names_x and 0 <= a < len(plot.names_x) else x.written(a)
        told = line.tips[i] if line.tips else f"{at}: {y.written(b)}{above}"
        if apart and (b > apart or not plot.log_y):
            ends = (y(b + apart), y(b - apart))
            caps = "".join(f"M{number(x(a) - 4)} {number(e)}h8" for e in ends)
            stroke = f"M{number(x(a))} {number(ends[0])}V{number(ends[1])}{caps}"
            parts.append(el("path", class_=f"whisker s{colour}", d=stroke))
        parts.append(marker(index, x(a), y(b), tip(f"{line.name}, {told}"), class_=f"dot f{colour}"))
    return Markup("").join(parts)


def _names(drawn: Sequence[tuple[int, Line]], x: Axis, y: Axis) -> Markup:
    ends = [(x(line.points[-1][0]), y(line.points[-1][1])) for _, line in drawn]
    placed = spread([end for _, end in ends], 16.0, y.end, y.start)
    parts: list[Markup] = []
    for (index, line), (from_x, from_y), to in zip(drawn, ends, placed, strict=True):
        if x.end - from_x > 14 or abs(to - from_y) > 4:
            leader = f"M{number(from_x + 7)} {number(from_y)}L{number(max(x.end - 4, from_x + 7))} {number(to)}h8"
            parts.append(el("path", class_="leader", d=leader))
        text = shortened(line.name, 26)
        parts.append(el("text", tip(line.name), text, class_=f"f{index % SERIES}", x=x.end + 10, y=to + 4))
    return Markup("").join(parts)
