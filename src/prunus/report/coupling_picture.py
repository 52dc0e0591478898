"""The picture of a network: a box per weight from top to bottom, and a coloured line per group.

A line starts at the weight that produces the units of a group and ends at the last one that reads them, like the lines
of a map of an underground railway. Where the line has a sign on it, an operation ties a further weight to the group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from prunus.core.errors import listed
from prunus.core.groups import Group
from prunus.report.coupling import Coupling, Tie, in_words, integers, reason_in_words
from prunus.report.coupling_rows import Fold, Lane, Layout, Row, block_of, layout
from prunus.report.figures import percent
from prunus.report.plots import CHARACTER, shortened
from prunus.report.repeats import summed
from prunus.report.svg import el, inline, marker, number, standalone, tip

Place = Callable[[Lane], float]
PALETTE = (0, 1, 2, 3, 4, 5, 7)  # of the plots' series, without the grey that means: stays whole
STEP, BOX = 42, 34  # from row to row, and of that the box
READS, MAKES = 10.0, 24.0  # where lines meet a box, from its top
NONE = "-"  # the key of what is on no line
SMALL = 5.9  # pixels per character of small text

SIGNS = {
    "add": "M-3.6 0H3.6M0 -3.6V3.6",
    "subtraction": "M-3.6 0H3.6",
    "multiplication": "M-2.7 -2.7L2.7 2.7M-2.7 2.7L2.7 -2.7",
    "concatenation": "M-1.8 -3.2V3.2M1.8 -3.2V3.2",
}
RING = "M-2.4 0a2.4 2.4 0 1 0 4.8 0a2.4 2.4 0 1 0 -4.8 0"  # any other operation
READING = (
    "One box per weight, from the first that runs to the last. One line per group: a unit that is removed",
    "goes from every weight on its line, and from the normalizations and biases that follow these.",
)

STYLE = """
.plot .box{fill:var(--surface);stroke:var(--line);stroke-width:1}
.plot .band{fill:var(--band)}
.plot .lane{fill:none;stroke-width:3.5;stroke-linecap:round}
.plot .wire{fill:none;stroke-width:2}
.plot .stop{stroke:var(--surface);stroke-width:1.5}
.plot .reads{fill:var(--surface);stroke-width:2.5}
.plot .sign{fill:none;stroke:var(--surface);stroke-width:2;stroke-linecap:round}
.plot .fg{fill:var(--ink-3)}.plot .sg{stroke:var(--ink-3)}
.plot .fold{fill:var(--surface);stroke:var(--ink-3);stroke-width:1;stroke-dasharray:3 3}
.plot .hidden{stroke:var(--surface);stroke-width:5;stroke-dasharray:4 5;fill:none}
.plot .small{font-size:11px}
.plot .name{fill:var(--ink)}.plot .path{fill:var(--ink-3)}
"""
LIGHT_BAND, DARK_BAND = "--band:#f4f0f3", "--band:#2a2531"


def colours() -> str:
    """The colours of the bands behind blocks, for a file of its own."""
    return f"svg{{{LIGHT_BAND}}}@media (prefers-color-scheme:dark){{svg{{{DARK_BAND}}}}}"


class _Note(NamedTuple):
    text: str
    kind: str
    lanes: tuple[Lane, ...]


def picture(found: Coupling, *, fold: bool | None = None, page: bool = False) -> str:
    """The network as SVG: a file of its own, or with `page` a part of a page that has the styles.

    Blocks that look like the one above are folded into one row if `fold` says so; by default if there are many rows.
    """
    return drawn(found, layout(found, fold), page=page)


def drawn(found: Coupling, plan: Layout, *, page: bool = False) -> str:
    """The picture of a layout."""
    label = f"{found.network}: which weights are coupled"
    lanes = {lane.key: lane for lane in plan.lanes}
    notes = {i: _notes(row, lanes, found) for i, row in enumerate(plan.rows) if isinstance(row, Row)}
    names = [_shown(row.weight.name) for row in plan.rows if isinstance(row, Row)]
    facts = [_facts(row, found) for row in plan.rows if isinstance(row, Row)]
    wide = max(
        190.0,
        max((CHARACTER * len(n) for n in names), default=0.0) + 28.0,
        max((SMALL * len(f) for f in facts), default=0.0) + 28.0,
    )
    pitch = 22.0 if plan.columns <= 16 else 13.0
    first = wide + 34.0
    note = first + pitch * max(plan.columns, 1) + 4.0
    told = max((SMALL * len(text) + 12 for every in notes.values() for text, _, _ in every), default=0.0)
    width = max(note + max(told, 120.0), 16 + SMALL * max(map(len, READING)))
    legend, top = _legend(found, plan, width, page)

    def x(lane: Lane) -> float:
        return first + pitch * lane.column

    def y(half: int) -> float:
        return top + STEP * (half // 2) + (MAKES if half % 2 else READS)

    parts: list[Markup] = [*legend, *_bands(plan, top, wide)]
    for i, row in enumerate(plan.rows):
        if isinstance(row, Row):
            parts += _wires(row, lanes, wide, x, top + STEP * i)
    parts += [_lane(lane, found, x, y) for lane in plan.lanes]
    for i, row in enumerate(plan.rows):
        at = top + STEP * i
        if isinstance(row, Fold):
            through = [lane for lane in plan.lanes if lane.top < 2 * i + 1 and lane.bottom >= 2 * i]
            parts += _fold(row, through, wide, note, x, at)
            continue
        parts += [_box(row, lanes, found, wide, at), *_stops(row, lanes, x, at)]
        for n, (text, kind, own) in enumerate(notes[i]):
            down = at + (21.0 if len(notes[i]) == 1 else 14.0 + 14.0 * n)
            keys = " ".join(lane.key for lane in own) or NONE
            parts.append(el("text", text, class_=f"small {kind}", x=note, y=down, data_g=keys))
    height = top + STEP * len(plan.rows)
    body = Markup("").join(parts)
    if page:
        return str(inline(body, width, height, label, "network"))
    return standalone(el("style", Markup(colours() + STYLE)) + body, width, height, label)


def colour_of(lane: Lane) -> str:
    """The number of a lane's colour, `g` for grey."""
    return "g" if lane.group is None else str(PALETTE[lane.colour % len(PALETTE)])


def units_of(group: Group) -> str:
    """`16 channels`."""
    return f"{group.units} {group.kind}{'s'[: group.units != 1]}"


def _shown(name: str, most: int = 44) -> str:
    """Without `.weight`; of a long path the end."""
    name = name.removesuffix(".weight")
    if len(name) <= most:
        return name
    end = name[1 - most :]
    return "…" + (end.partition(".")[2] or end)


def _end(path: str) -> str:
    """The last part of a path that is not a number, and what comes after it: `bn1`, `layers.1`."""
    parts = path.split(".")
    start = max((i for i, part in enumerate(parts) if not part.isdecimal()), default=0)
    return ".".join(parts[start:])


def _facts(row: Row, found: Coupling) -> str:
    told = "×".join(map(str, row.weight.shape))
    if found.macs and row.weight.macs:
        told += f" · {percent(row.weight.macs / found.macs, 1)} of MACs"
    if row.follow:
        told += f" · with {listed([_end(name) for name in row.follow], 2)}"
    return told


def _notes(row: Row, lanes: dict[str, Lane], found: Coupling) -> list[_Note]:
    """What stands at the right of a row: at most two lines."""
    name = row.weight.name
    told: list[_Note] = []
    starts: list[Lane] = []
    ties: dict[str, list[Lane]] = {}
    for key in row.makes:
        lane = lanes.get(key)
        if lane is None:
            continue
        if name in lane.joins:
            maker, tie = lane.joins[name]
            ties.setdefault(f"tied to {_shown(maker)} by {in_words(tie.operation)}", []).append(lane)
        elif lane.group is not None:
            starts.append(lane)
        elif row.weight.frozen is None:
            told.append(_Note(f"stays whole: {shortened(reason_in_words(lane.reason), 96)}", "path", (lane,)))
    joined = [_Note(text, f"f{colour_of(own[0])}", tuple(own)) for text, own in ties.items()]
    if row.weight.frozen is not None:
        told += joined[:1] if not starts else []
        known = any(lanes[k].reason == row.weight.frozen for k in row.makes if k in lanes and name in lanes[k].joins)
        if not known:
            at = tuple(lanes[k] for k in row.makes if k in lanes and lanes[k].group is None)
            told.append(_Note(f"stays whole: {shortened(reason_in_words(row.weight.frozen), 96)}", "path", at))
    else:
        told += joined[: 1 if starts else 2]
    if starts:
        told.append(_begins(found, starts))
    return told[:2] or [_Note("in no group: nothing that can be removed owns a part of its output", "path", ())]


def _begins(found: Coupling, starts: Sequence[Lane]) -> _Note:
    groups = [lane.group for lane in starts if lane.group is not None]
    if len(groups) == 1:
        text = units_of(groups[0])
        if found.params:
            text += f", {percent(found.governs(groups[0])[0] / found.params, 1)} of the parameters"
    else:
        text = f"{len(groups)} groups: {' + '.join(str(g.units) for g in groups)} {groups[0].kind}s"
    return _Note(text, f"f{colour_of(starts[0])}", tuple(starts))


def _bands(plan: Layout, top: float, wide: float) -> list[Markup]:
    """A shade behind the weights of one block."""
    runs: list[tuple[str, int, int]] = []
    for i, row in enumerate(plan.rows):
        block = block_of(row.weight.name) if isinstance(row, Row) else ""
        if runs and runs[-1][0] == block:
            runs[-1] = (block, runs[-1][1], i)
        else:
            runs.append((block, i, i))
    return [
        el(
            "rect",
            class_="band",
            x=0,
            y=top + STEP * a - 4.0,
            width=wide + 16.0,
            height=float(STEP * (b - a + 1)) - 1.0,
            rx=8,
        )
        for block, a, b in runs
        if block and b > a
    ]


def _ends(row: Row, keys: Sequence[str], middle: float) -> dict[str, float]:
    """Heights at which lines meet a box: apart from each other where they are few."""
    apart = 3.5 if 1 < len(keys) <= 5 else 0.0
    return {key: middle + apart * (i - (len(keys) - 1) / 2) for i, key in enumerate(keys)}


def _wires(row: Row, lanes: dict[str, Lane], wide: float, x: Place, at: float) -> list[Markup]:
    parts = []
    for keys, middle in ((row.reads, READS), (row.makes, MAKES)):
        ends = _ends(row, keys, middle)
        # Long wires first: where several run on one another, the one that ends soonest is seen.
        for key in sorted((k for k in keys if k in lanes), key=lambda k: -lanes[k].column):
            lane, here = lanes[key], at + ends[key]
            to, down = x(lane), at + middle
            path = f"M{number(8 + wide)} {number(here)}H{number(to - 12)}L{number(to)} {number(down)}"
            parts.append(el("path", class_=f"wire s{colour_of(lane)}", d=path, data_g=key))
    return parts


def _lane(lane: Lane, found: Coupling, x: Place, y: Callable[[int], float]) -> Markup:
    at, a, b = x(lane), y(lane.top), y(lane.bottom)
    if lane.group is None:
        text = f"stays whole: {reason_in_words(lane.reason)}"
    else:
        params, macs = found.governs(lane.group)
        text = f"{units_of(lane.group)} of {lane.group.name}"
        if found.params and found.macs:
            text += f": {percent(params / found.params, 1)} of the parameters, {percent(macs / found.macs, 1)} of MACs"
        if whole := integers(lane.group):
            text += f"; repairs {', '.join(m.param for m in whole)}"
    return el(
        "path",
        tip(text),
        class_=f"lane s{colour_of(lane)}",
        d=f"M{number(at)} {number(a)}V{number(b)}",
        data_g=lane.key,
    )


def _box(row: Row, lanes: dict[str, Lane], found: Coupling, wide: float, at: float) -> Markup:
    name = row.weight.name
    shown = _shown(name)
    head, dot, tail = shown.rpartition(".")
    lines = [f"{name} {'×'.join(map(str, row.weight.shape))}, {row.weight.params:,} parameters"]
    lines += [f"produces {_what(lanes[k])}" for k in row.makes if k in lanes]
    lines += [f"reads {_what(lanes[k])}" for k in row.reads if k in lanes]
    lines += [f"with it go the parameters of {', '.join(row.follow)}"] if row.follow else []
    lines += [f"its output stays whole: {reason_in_words(row.weight.frozen)}"] if row.weight.frozen is not None else []
    strips = [f"f{colour_of(lanes[k])}" for k in row.makes if k in lanes and lanes[k].group is not None]
    strips = strips or ["fg"]
    tall = BOX / len(strips)
    return el(
        "g",
        tip("\n".join(lines)),
        el("rect", class_="box", x=8.0, y=at, width=wide, height=BOX, rx=6),
        *(
            el("rect", class_=kind, x=8.0, y=at + tall * i, width=6.0, height=tall, rx=2 if len(strips) == 1 else None)
            for i, kind in enumerate(strips)
        ),
        el(
            "text",
            el("tspan", head + dot, class_="path"),
            el("tspan", tail, class_="strong"),
            x=22.0,
            y=at + 15.0,
        ),
        el("text", _facts(row, found), class_="faint", x=22.0, y=at + 28.0),
        data_g=" ".join(row.lanes) or NONE,
        class_="weight",
    )


def _stops(row: Row, lanes: dict[str, Lane], x: Place, at: float) -> list[Markup]:
    parts = []
    name = row.weight.name
    for key in row.reads:
        if key in lanes:
            told = tip(f"{_shown(name)} reads {_what(lanes[key])}")
            kind = f"reads s{colour_of(lanes[key])}"
            parts.append(el("circle", told, class_=kind, cx=x(lanes[key]), cy=at + READS, r=4.0, data_g=key))
    for key in row.makes:
        if key not in lanes:
            continue
        lane = lanes[key]
        if name in lane.joins:
            maker, tie = lane.joins[name]
            text = f"{_shown(name)} is tied to {_shown(maker)} by {in_words(tie.operation)}: {_what(lane)}"
            parts.append(_sign(tie, x(lane), at + MAKES, text, colour_of(lane), key))
        else:
            told = tip(f"{_shown(name)} produces {_what(lane)}")
            kind = f"stop f{colour_of(lane)}"
            parts.append(el("circle", told, class_=kind, cx=x(lane), cy=at + MAKES, r=5.5, data_g=key))
    return parts


def _what(lane: Lane) -> str:
    return "outputs that stay whole" if lane.group is None else f"{units_of(lane.group)} of {lane.group.name}"


def shape_of(tie: Tie) -> str:
    """The path of an operation's sign, around 0."""
    return SIGNS.get(kind_of(tie), RING)


def _sign(tie: Tie, x: float, y: float, told: str, colour: str, key: str) -> Markup:
    place = f"translate({number(x)} {number(y)})"
    disc = marker(0, 0, 0, size=7.5, class_=f"stop f{colour}")
    return el("g", tip(told), disc, el("path", class_="sign", d=shape_of(tie)), transform=place, data_g=key)


def _fold(row: Fold, lanes: Sequence[Lane], wide: float, note: float, x: Place, at: float) -> list[Markup]:
    """A row that stands for blocks, through which lines go on dashed."""
    count = len(row.names)
    parts = [
        el("path", class_="hidden", d=f"M{number(x(lane))} {number(at - 2.0)}V{number(at + BOX + 4.0)}")
        for lane in lanes
    ]
    box = el("rect", class_="fold", x=8.0, y=at + 4.0, width=wide, height=BOX - 8.0, rx=13)
    text = el("text", f"{count} more like the one above", class_="small", x=22.0, y=at + 21.0)
    names = el("text", shortened(summed(row.names), 70), class_="small path", x=note, y=at + 21.0)
    return [*parts, el("g", tip(", ".join(row.names)), box, text, names)]


def signs(found: Coupling, plan: Layout) -> list[tuple[Markup, str]]:
    """What the signs on the lines mean: each drawn around 0, with its words."""
    ties = {shape_of(tie): tie for lane in plan.lanes for _, tie in lane.joins.values()}
    items: list[tuple[Markup, str]] = [
        (el("circle", class_="stop f0", cx=0, cy=0, r=5.5), "produces the units of this line"),
        (el("circle", class_="reads s0", cx=0, cy=0, r=4.0), "reads them"),
    ]
    others = list(dict.fromkeys(kind_of(tie) for lane in plan.lanes for _, tie in lane.joins.values()))
    for shape in ties:
        disc = marker(0, 0, 0, size=7.5, class_="stop f0")
        kinds = [kind for kind in others if SIGNS.get(kind, RING) == shape]
        items.append((disc + el("path", class_="sign", d=shape), f"tied by {' or '.join(kinds[:3])}"))
    if found.frozen:
        items.append((el("rect", class_="fg", x=-3, y=-7, width=6, height=14, rx=2), "output stays whole"))
    return items


def kind_of(tie: Tie) -> str:
    """The operation of a tie without its place, in words."""
    return in_words(tie.operation).partition(" in ")[0]


def _legend(found: Coupling, plan: Layout, width: float, page: bool) -> tuple[list[Markup], float]:
    """Title and signs, where the picture is a file of its own; and where the rows start."""
    if page:
        return [], 8.0
    count = len(found.groups)
    title = f"{found.network}: {count} group{'s'[: count != 1]} of units that live and die together"
    parts = [el("text", title, class_="strong", x=8, y=16)]
    down = 16.0
    for line in READING:
        down += 17.0
        parts.append(el("text", line, class_="small", x=8, y=down))
    at, down = 14.0, down + 24.0
    for sign, text in signs(found, plan):
        if at > 14.0 and at + 22 + SMALL * len(text) > width:
            at, down = 14.0, down + 20.0
        parts.append(el("g", sign, transform=f"translate({number(at)} {number(down - 4)})"))
        parts.append(el("text", text, class_="small", x=at + 14.0, y=down))
        at += 34 + SMALL * len(text)
    return parts, down + 22.0
