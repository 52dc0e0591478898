"""A contrast's pictures: accuracy against sparsity with bands, layers in small multiples, verdicts as intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from prunus.report.axes import SparsityAxis, accuracy_range, nice_step, spread
from prunus.report.contrast_records import ContrastRecord, Judgement, PointRecord
from prunus.report.figures import exact, percent, points, times
from prunus.report.plots import CHARACTER, shortened
from prunus.report.svg import SERIES, el, marker, number, tip

Scale = Callable[[float], float]
WIDE, HIGH = 940, 420
FLOOR = 1e-3  # the least share kept that a picture of layers tells apart from nothing

STYLE = """
.contrast .band{stroke:none;fill-opacity:.16}.contrast .span{fill-opacity:.07}
.contrast .base .curve{stroke-width:1.25;opacity:.6}.contrast .base .dot{opacity:.75}.contrast .base .band{display:none}
.contrast .base .whisker{opacity:.55}
.contrast .kin .curve{stroke-dasharray:4 3}
.contrast .pt{cursor:default}.contrast .hit{fill:transparent;stroke:none}
.contrast .dense-band{fill:var(--ink-3);fill-opacity:.13}
.contrast .arm:focus,.contrast .pt:focus{outline:none}
.contrast .arm:focus-visible .curve{stroke-width:4.5;opacity:1}
.contrast .pt:focus-visible .hit,.contrast .pt:hover .hit{stroke:var(--ink);stroke-width:1.5}
.layers .curve{stroke-width:1.6}.layers .gone{stroke:var(--bad);stroke-width:1.8;fill:none}
.interval .bar{stroke-width:5;stroke-linecap:round}
.interval .claimed{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:3 3}
"""


@dataclass(frozen=True)
class Look:
    """How an arm is drawn: the number of its colour and shape, and whether it is a baseline (of the arm it follows)."""

    index: int
    base: bool = False
    kin: bool = False


def looks(record: ContrastRecord) -> dict[str, Look]:
    """Arm -> look. A baseline that is named after an arm has its colour; dense networks have none and are left out."""
    pruned = [a for a in record.arms if a.recipe]
    own = {a.name: Look(i) for i, a in enumerate(a for a in pruned if not a.baseline)}
    found, free = dict(own), len(own)
    for arm in (a for a in pruned if a.baseline):
        after = max((name for name in own if arm.name.startswith(f"{name}, ")), key=len, default=None)
        found[arm.name] = Look(own[after].index if after else free, base=True, kin=after is not None)
        free += after is None
    return found


def removed(point: PointRecord, of: str) -> float:
    """The share of the whole network's parameters, or multiply-accumulates, that is gone."""
    dense, kept = (point.params_dense, point.params_kept) if of == "params" else (point.macs_dense, point.macs_kept)
    return 1.0 - kept / dense if dense else 0.0


def told(point: PointRecord) -> str:
    """All that is known of a point, in a sentence."""
    several = f" ± {100 * point.std:.2f}" if point.std is not None else ""
    n = len(point.runs)
    seeds = f"{n} seeds, {percent(point.low)} to {percent(point.best)}" if n > 1 else "one seed"
    accuracy = f"test accuracy {percent(point.mean)}{several} ({seeds})"
    words = [f"{point.arm}, {percent(point.keep, 1)} asked to be kept: {accuracy}"]
    if point.delta is not None:
        words.append(f"{points(0.0, point.delta)} points to the dense network")
    words.append(f"parameters dense / kept {times(point.params_ratio)}, MACs dense / kept {times(point.macs_ratio)}")
    if point.effective is not None:
        words.append(f"sparsity {percent(point.sparsity, 1)}, effective {percent(point.effective, 1)}")
    if point.collapsed:
        words.append(f"a layer is empty in {point.collapsed} of {n} runs")
    return "; ".join(words)


def has_accuracy(record: ContrastRecord, problem: str) -> bool:
    """Whether an arm that removes something has a point."""
    return any(p.problem == problem and record.arm(p.arm).recipe for p in record.points_found)


def accuracy_svg(record: ContrastRecord, problem: str, *, of: str = "params", log: bool = True) -> Markup:
    """Test accuracy against the share removed: a line per arm, bands over seeds, dense networks dashed.

    of: `params` or `macs`. Everything that a page may hide has a class: `arm a<i>` with `base` for baselines, `std`
    and `span` for the two bands.
    """
    look = looks(record)
    drawn = {name: ps for name in look if (ps := record.found(problem, name))}
    dense = [p for a in record.dense() for p in record.found(problem, a.name)]
    left, top, bottom = 58.0, 34.0, HIGH - 62.0
    named = [name for name in drawn if not look[name].base]
    right = WIDE - (30.0 + CHARACTER * max([len(shortened(n, 26)) for n in [*named, *(p.arm for p in dense)]] + [10]))
    every = [p for ps in drawn.values() for p in ps]
    x = SparsityAxis(max(removed(p, of) for p in every), left, right, stretched=log)
    low, high, step = accuracy_range([v for p in [*every, *dense] for v in (p.low, p.best)])

    def y(accuracy: float) -> float:
        return bottom - (bottom - top) * (min(max(accuracy, low), high) - low) / (high - low)

    def across(point: PointRecord) -> float:
        return x(min(max(removed(point, of), 0.0), 0.9999 if log else 1.0))

    body = [_frame(x, y, (low, high, step), top, bottom, of)]
    body += [_dense(p, y, left, right) for p in dense]
    # Baselines first: what the contrast is about lies on top.
    for name in sorted(drawn, key=lambda n: not look[n].base):
        number_ = list(look).index(name)
        body.append(_arm(name, look[name], number_, drawn[name], across, y))
    ends = {name: (across(drawn[name][-1]), y(drawn[name][-1].mean)) for name in named}
    body.append(_names(ends, look, list(look), [(p.arm, y(p.mean)) for p in dense], right, top, bottom))
    what = "parameters" if of == "params" else "multiply-accumulates"
    return el(
        "svg",
        *body,
        viewBox=f"0 0 {WIDE} {HIGH}",
        width=WIDE,
        height=HIGH,
        role="group",
        aria_label=f"Test accuracy against the share of the {what} removed, {problem}, "
        f"{'logarithmic' if log else 'linear'} axis. Tab goes from line to line, arrow keys from point to point.",
        class_=f"plot contrast {of} {'log' if log else 'lin'}",
    )


def _frame(x: SparsityAxis, y: Scale, marks: tuple[float, float, float], top: float, bottom: float, of: str) -> Markup:
    low, high, step = marks
    decimals = 0 if step >= 0.00999 else 1 if step >= 0.000999 else 2
    parts: list[Markup] = []
    for i in range(round((high - low) / step) + 1):
        at = y(low + i * step)
        parts.append(el("line", class_="grid", x1=x.left, x2=x.right, y1=at, y2=at))
        parts.append(el("text", percent(low + i * step, decimals), x=x.left - 8, y=at + 4, text_anchor="end"))
    for mark in x.ticks(apart=62.0):
        fine = 0 if abs(mark * 100 - round(mark * 100)) < 1e-6 else 1
        parts.append(el("line", class_="axis", x1=x(mark), x2=x(mark), y1=bottom, y2=bottom + 5))
        parts.append(el("text", percent(mark, fine), x=x(mark), y=bottom + 19, text_anchor="middle"))
        kept = f"{percent(1 - mark, fine)} kept"
        parts.append(el("text", kept, class_="faint", x=x(mark), y=bottom + 33, text_anchor="middle"))
    parts.append(el("line", class_="axis", x1=x.left, x2=x.right, y1=bottom, y2=bottom))
    parts.append(el("text", "Test accuracy", class_="strong", x=8.0, y=16.0))
    name = f"Share of the {'parameters' if of == 'params' else 'multiply-accumulates'} removed, of the whole network"
    parts.append(el("text", name, class_="strong", x=(x.left + x.right) / 2, y=bottom + 54, text_anchor="middle"))
    return Markup("").join(parts)


def _dense(point: PointRecord, y: Scale, left: float, right: float) -> Markup:
    at, spread_ = y(point.mean), point.std or 0.0
    up, down = y(point.mean + spread_), y(point.mean - spread_)
    band = el("rect", class_="dense-band std", x=left, y=up, width=right - left, height=max(down - up, 0.0))
    line = el("line", class_="dense", x1=left, x2=right, y1=at, y2=at)
    hit = el("rect", class_="hit", x=left, y=at - 4, width=right - left, height=8.0)
    return el(
        "g", el("g", tip(told(point)), band, line, hit, class_="pt", tabindex=0, role="img"), class_="arm densities"
    )


def _arm(
    name: str, look: Look, place: int, found: Sequence[PointRecord], x: Callable[[PointRecord], float], y: Scale
) -> Markup:
    colour = look.index % SERIES
    parts: list[Markup] = []
    if len(found) > 1:
        for class_, edges in (
            ("span", [(p.low, p.best) for p in found]),
            ("std", [(p.mean - (p.std or 0.0), p.mean + (p.std or 0.0)) for p in found]),
        ):
            if all(len(p.runs) > 1 for p in found):
                over = [f"{number(x(p))} {number(y(e[1]))}" for p, e in zip(found, edges, strict=True)]
                under = [f"{number(x(p))} {number(y(e[0]))}" for p, e in zip(found, edges, strict=True)]
                parts.append(el("path", class_=f"band {class_} f{colour}", d=f"M{'L'.join(over + under[::-1])}Z"))
        line = "M" + "L".join(f"{number(x(p))} {number(y(p.mean))}" for p in found)
        parts.append(el("path", class_=f"curve s{colour}", d=line))
    for p in found:
        at, middle = x(p), y(p.mean)
        inner = [tip(told(p))]
        if len(found) == 1 and p.std:
            stroke = f"M{number(at)} {number(y(p.mean + p.std))}V{number(y(p.mean - p.std))}"
            inner.append(el("path", class_=f"whisker s{colour} std", d=stroke))
        size = 3.2 if look.base else 4.5
        inner.append(marker(look.index, at, middle, size=size, class_=f"dot f{colour}"))
        inner.append(el("circle", class_="hit", cx=at, cy=middle, r=7.0))
        parts.append(el("g", *inner, class_="pt", tabindex=-1, role="img"))
    kinds = f"arm a{place}{' base' * look.base}{' kin' * look.kin}"
    label = f"{name}: {len(found)} point{'' if len(found) == 1 else 's'}, " + ", ".join(
        f"{percent(p.mean)} at {percent(p.keep, 1)} kept" for p in found
    )
    return el("g", *parts, class_=kinds, tabindex=0, role="group", aria_label=label)


def _names(
    ends: dict[str, tuple[float, float]],
    look: dict[str, Look],
    order: list[str],
    dense: list[tuple[str, float]],
    right: float,
    top: float,
    bottom: float,
) -> Markup:
    """Names at the right edge, moved apart, each with a leader from the end of its line."""
    placed = spread([y for _, y in ends.values()] + [y for _, y in dense], 16.0, top, bottom)
    parts: list[Markup] = []
    for (name, (x, y)), to in zip(ends.items(), placed, strict=False):
        inner = [
            el("text", tip(name), shortened(name, 26), class_=f"f{look[name].index % SERIES}", x=right + 10, y=to + 4)
        ]
        if right - x > 14 or abs(to - y) > 4:
            path = f"M{number(x + 7)} {number(y)}L{number(max(right - 4, x + 7))} {number(to)}h8"
            inner.append(el("path", class_="leader", d=path))
        parts.append(el("g", *inner, class_=f"name a{order.index(name)}", aria_hidden="true"))
    for (name, _), to in zip(dense, placed[len(ends) :], strict=True):
        parts.append(el("text", shortened(name, 26), x=right + 10, y=to + 4, aria_hidden="true"))
    return Markup("").join(parts)


def floor_of(record: ContrastRecord, problem: str) -> float:
    """Where the axis of a problem's pictures of layers ends: a power of ten below every share that is not nothing."""
    points_ = [p for p in record.points_found if p.problem == problem]
    shares = [layer.share for p in points_ for layer in p.layers if layer.share > 0]
    lowest = math.floor(math.log10(min(shares, default=0.1)))
    return min(max(float(10.0**lowest), FLOOR), 0.1)


def layers_svg(found: Sequence[PointRecord], look: Look, floor: float = FLOOR) -> Markup:
    """What an arm keeps of every layer, a line per operating point, fainter where more is kept; empty layers crossed.

    The vertical axis is logarithmic, from all to `floor`.
    """
    width, height = 300, 170
    layers = found[0].layers
    left, right, top, bottom = 44.0, width - 10.0, 10.0, height - 24.0
    step = (right - left) / max(1, len(layers) - 1)

    def x(i: int) -> float:
        return left + step * i if len(layers) > 1 else (left + right) / 2

    def y(share: float) -> float:
        return top + (bottom - top) * math.log10(1 / max(share, floor)) / math.log10(1 / floor)

    parts: list[Markup] = []
    for mark in (m for m in (1.0, 0.1, 0.01, FLOOR) if m >= floor * 0.99):
        parts.append(el("line", class_="grid", x1=left, x2=right, y1=y(mark), y2=y(mark)))
        parts.append(el("text", percent(mark, 0 if mark >= 0.01 else 1), x=left - 6, y=y(mark) + 4, text_anchor="end"))
    colour = look.index % SERIES
    for rank, point in enumerate(found):
        strength = 0.35 + 0.65 * rank / max(1, len(found) - 1) if len(found) > 1 else 1.0
        shares = [0.0 if math.isnan(layer.share) else layer.share for layer in point.layers]
        path = "M" + "L".join(f"{number(x(i))} {number(y(s))}" for i, s in enumerate(shares))
        parts.append(el("path", class_=f"curve s{colour}", d=path, opacity=strength))
        for i, (layer, share) in enumerate(zip(point.layers, shares, strict=True)):
            asked = f"{layer.name}, {percent(point.keep, 1)} asked to be kept"
            kept = f"{asked}: {percent(share, 2)} of {exact(layer.weights)} weights kept"
            if share:
                dot = el("circle", tip(kept), class_=f"f{colour}", cx=x(i), cy=y(share), r=2.6, opacity=strength)
            else:
                at, low = x(i), y(0.0)
                cross = f"M{number(at - 4)} {number(low - 4)}l8 8m0 -8l-8 8"
                dot = el("path", tip(f"{kept}: empty"), class_="gone", d=cross)
            parts.append(dot)
    parts.append(el("text", "first layer", class_="faint", x=left, y=bottom + 18))
    parts.append(el("text", "last", class_="faint", x=right, y=bottom + 18, text_anchor="end"))
    told_ = "; ".join(
        f"{percent(p.keep, 1)} asked: " + ", ".join(f"{layer.name} {percent(layer.share, 1)}" for layer in p.layers)
        for p in found
    )
    return el(
        "svg",
        *parts,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=f"Share kept by layer, {found[0].arm}: {told_}",
        class_="plot layers",
    )


def interval_svg(found: Judgement, margin: float, reach: float, *, width: int = 260) -> Markup:
    """A mean difference with its interval between -reach and reach; what is claimed begins at the dashed line."""
    if found.gap is None or found.low is None or found.high is None or reach <= 0:
        return Markup("")

    def x(value: float) -> float:
        return 10 + (width - 20) * (min(max(value, -reach), reach) + reach) / (2 * reach)

    mood = {"supported": "var(--good)", "refuted": "var(--bad)"}.get(found.word, "var(--even)")
    step = nice_step(2 * reach, 4)
    marks = [i * step for i in range(math.ceil(-reach / step), math.floor(reach / step) + 1)]
    parts = [el("line", class_="grid", x1=x(m), x2=x(m), y1=4.0, y2=30.0) for m in marks]
    parts += [
        el("text", f"{m:+.3g}" if m else "0", class_="faint", x=x(m), y=44.0, text_anchor="middle") for m in marks
    ]
    parts.append(el("line", class_="axis", x1=x(0.0), x2=x(0.0), y1=4.0, y2=30.0))
    parts.append(el("line", class_="claimed", x1=x(margin), x2=x(margin), y1=2.0, y2=32.0))
    bar = el("line", class_="bar", x1=x(found.low), x2=x(found.high), y1=17.0, y2=17.0, style=f"stroke:{mood}")
    dot = el("circle", class_="dot", cx=x(found.gap), cy=17.0, r=5.0, style=f"fill:{mood}")
    return el(
        "svg",
        *parts,
        bar,
        dot,
        viewBox=f"0 0 {width} 48",
        width=width,
        height=48,
        role="img",
        aria_label=f"{found.word}: {found.told}",
        class_="plot interval",
    )
