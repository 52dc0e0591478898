"""Where everything goes in the picture of a network: one row per weight, one lane per group.

Rows stand in the order in which the weights run. A lane is a vertical line through the rows of one group; lanes that
never run side by side share a column. Blocks that repeat are folded into one row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from prunus.core.groups import Group
from prunus.report.coupling import Axis, Coupling, Tie, Weight, axes_of, spread
from prunus.report.repeats import relative

MANY = 24  # rows beyond which blocks that repeat are folded
LEAST = 3  # as many blocks must be alike
COLOURS = 7
USUAL = {"weight", "bias", "running_mean", "running_var"}  # what a module's own name stands for
NEAR = 4  # half rows between lanes that are seen side by side


@dataclass(frozen=True)
class Row:
    """A weight.

    Attributes:
        makes: keys of the lanes that it produces units of.
        reads: keys of the lanes that it consumes.
        follow: modules whose parameters go with its output (normalizations, scales), or such a parameter itself.
    """

    weight: Weight
    makes: tuple[str, ...]
    reads: tuple[str, ...]
    follow: tuple[str, ...]

    @property
    def lanes(self) -> tuple[str, ...]:
        """Every lane that has a station here."""
        return tuple(dict.fromkeys((*self.reads, *self.makes)))


@dataclass(frozen=True)
class Fold:
    """Blocks that look like the one above."""

    names: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Lane:
    """A group, or weights tied to each other that stay whole (`group` is None), and where it runs.

    Attributes:
        joins: weight -> the tie by which a further producer belongs to it, and the producer it is tied to.
        column: 0 is next to the weights.
        top, bottom: in half rows: a row reads at 2 i and produces at 2 i + 1.
        colour: from 0 to 6; means nothing where there is no group.
    """

    key: str
    group: Group | None
    reason: str
    joins: Mapping[str, tuple[str, Tie]]
    column: int
    top: int
    bottom: int
    colour: int


@dataclass(frozen=True)
class Layout:
    """Rows and lanes; `hidden` counts the weights in folds."""

    rows: tuple[Row | Fold, ...]
    lanes: tuple[Lane, ...]

    @property
    def columns(self) -> int:
        """How many lanes run side by side."""
        return max((lane.column for lane in self.lanes), default=-1) + 1

    @property
    def folded(self) -> bool:
        """Whether anything is hidden."""
        return any(isinstance(row, Fold) for row in self.rows)


def layout(found: Coupling, fold: bool | None = None) -> Layout:
    """The rows and lanes of a network. Blocks are folded if `fold` says so, by default if there are many rows."""
    groups = {f"g{i}": group for i, group in enumerate(found.groups)}
    whole = _whole(found)
    every = _rows(found, groups, whole)
    rows: list[Row | Fold] = list(every)
    if len(every) > MANY if fold is None else fold:
        homes = {key: (g.name, g.units, g.kind) for key, g in groups.items()}
        homes |= {key: (part.makers[0], 0, "") for key, part in whole.items()}
        rows = _folded(every, homes)
    spans = _spans(rows)
    limits = {key: spans[key] for key in (*groups, *whole) if key in spans}
    columns = _columns(limits)
    colours = _colours({key: span for key, span in _spans(every).items() if key in groups}, COLOURS)
    lanes = []
    for key, (top, bottom) in limits.items():
        if (group := groups.get(key)) is not None:
            makers: Collection[str] = {m.param for m in group.members if m.role == "out"}
            reason, ties = "", found.tree(group)
        else:
            makers, reason, ties = whole[key].makers, whole[key].reason, whole[key].ties
        joins = _joins(makers, ties)
        lanes.append(Lane(key, group, reason, joins, columns[key], top, bottom, colours.get(key, 0)))
    return Layout(tuple(rows), tuple(lanes))


def _spans(rows: Sequence[Row | Fold]) -> dict[str, tuple[int, int]]:
    """The first and the last half row of every lane that is seen."""
    seen: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if isinstance(row, Row):
            for key in row.reads:
                seen.setdefault(key, []).append(2 * i)
            for key in row.makes:
                seen.setdefault(key, []).append(2 * i + 1)
    for i, row in enumerate(rows):  # a lane that goes on in a fold runs into it; one that lies in it is not drawn
        for inner in row.rows if isinstance(row, Fold) else ():
            for key in inner.lanes:
                if key in seen:
                    seen[key].append(2 * i + 1 if min(seen[key]) < 2 * i else 2 * i)
    return {key: (min(halves), max(halves)) for key, halves in seen.items()}


def _rows(found: Coupling, groups: Mapping[str, Group], whole: Mapping[str, _Whole]) -> list[Row]:
    makes: dict[str, list[str]] = {}
    reads: dict[str, list[str]] = {}
    follow: dict[str, list[str]] = {}
    followers: set[str] = set()
    for key, group in groups.items():
        home: dict[Axis, str] = {(m.param, m.dim): m.param for m in group.members if m.role == "out"}
        for tie in found.tree(group):
            home.setdefault(tie.child, home.get(tie.parent, tie.parent[0]))
        for m in group.members:
            if m.role in ("out", "in"):
                (makes if m.role == "out" else reads).setdefault(m.param, []).append(key)
            else:
                followers.add(m.param)
                at = home.get((m.param, m.dim), m.param)
                module, _, last = m.param.rpartition(".")
                if module != _module(at) or last not in USUAL:
                    follow.setdefault(at, []).append(module if last in USUAL else m.param)
    for key, part in whole.items():
        for name in part.makers:
            makes.setdefault(name, []).append(key)
    rows = []
    for w in found.weights:
        belongs = w.name in makes or w.name in reads or w.frozen is not None
        if belongs or (len(w.shape) >= 2 and w.name not in followers):
            places = (tuple(dict.fromkeys(of.get(w.name, ()))) for of in (makes, reads, follow))
            rows.append(Row(w, *places))
    return rows


@dataclass(frozen=True)
class _Whole:
    """Outputs that stay whole and are tied to each other."""

    makers: tuple[str, ...]
    reason: str
    ties: tuple[Tie, ...]


def _whole(found: Coupling) -> dict[str, _Whole]:
    """The sets of several weights whose outputs are tied to each other and stay whole, by key."""
    owned = {axis for group in found.groups for axis in axes_of(group)}
    near: dict[Axis, list[tuple[Axis, str]]] = {}
    for one, other, operation in found.links:
        place = operation.partition(" in ")[2]
        homes = {_module(name) for name, _ in (one, other)}
        # What a weight reads is tied by the operation of its own module; it is no output.
        if not (place in homes and len(homes) > 1) and one not in owned and other not in owned:
            near.setdefault(one, []).append((other, operation))
            near.setdefault(other, []).append((one, operation))
    axes: dict[str, list[Axis]] = {}
    for axis in near:
        axes.setdefault(axis[0], []).append(axis)
    parts: dict[str, _Whole] = {}
    seen: set[Axis] = set()
    for weight in found.weights:
        for axis in axes.get(weight.name, ()):
            if axis in seen:
                continue
            reached = spread(near, [axis], lambda _: True)
            seen |= {axis, *reached}
            own = {name for name, _ in (axis, *reached)}
            makers = tuple(w.name for w in found.weights if w.name in own and len(w.shape) >= 2)
            reasons = [w.frozen for w in found.weights if w.name in own and w.frozen is not None]
            if len(makers) > 1 and reasons:
                parts[f"w{len(parts)}"] = _Whole(makers, reasons[0], tuple(reached.values()))
    return parts


def _joins(makers: Collection[str], ties: Iterable[Tie]) -> dict[str, tuple[str, Tie]]:
    """For every weight that a tie adds to those that make the units: the nearest of them, and that tie."""
    joined: dict[str, tuple[str, Tie]] = {}
    nearest: dict[str, str] = {}
    for tie in ties:
        parent, child = tie.parent[0], tie.child[0]
        at = parent if parent in makers else nearest.get(parent, parent)
        if child not in makers:
            nearest.setdefault(child, at)
        elif child != at:
            joined.setdefault(child, (at, tie))
    return joined


def _colours(spans: Mapping[str, tuple[int, int]], most: int) -> dict[str, int]:
    """Lanes that run near each other differ in colour as far as the colours go; the longest unused is taken."""
    used = dict.fromkeys(range(most), -1)
    found: dict[str, int] = {}
    for n, key in enumerate(sorted(spans, key=lambda k: spans[k])):
        top, bottom = spans[key]
        near = {found[k] for k in found if spans[k][1] + NEAR >= top and spans[k][0] <= bottom + NEAR}
        free = [c for c in used if c not in near] or list(used)
        found[key] = min(free, key=lambda c: used[c])
        used[found[key]] = n
    return found


def _columns(spans: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Short lanes next to the weights, long ones further out; lanes that overlap stand in different columns."""
    taken: list[list[tuple[int, int]]] = []
    found = {}
    for key in sorted(spans, key=lambda k: (spans[k][1] - spans[k][0], spans[k][0])):
        top, bottom = spans[key]
        for column in range(len(taken) + 1):
            if column == len(taken):
                taken.append([])
            if all(bottom < t or b < top for t, b in taken[column]):
                taken[column].append((top, bottom))
                found[key] = column
                break
    return found


def block_of(name: str) -> str:
    """The innermost numbered module around the module of a parameter; empty where there is none."""
    around = name.split(".")[:-2]
    while around and not around[-1].isdecimal():
        around.pop()
    return ".".join(around)


def _blocks(rows: Sequence[Row]) -> Iterator[tuple[str, list[str]]]:
    """Containers, outermost first, with their numbered entries that have rows."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        parts = row.weight.name.split(".")
        for i, part in enumerate(parts[:-1]):
            if part.isdecimal():
                found.setdefault(".".join(parts[:i]), {})[".".join(parts[: i + 1])] = None
    yield from ((path, list(entries)) for path, entries in sorted(found.items(), key=lambda item: item[0].count(".")))


def _folded(every: Sequence[Row], homes: Mapping[str, tuple[str, int, str]]) -> list[Row | Fold]:
    rows: list[Row | Fold] = list(every)
    for _, entries in _blocks(every):
        runs: list[list[str]] = [entries[:1]]
        for one, other in pairwise(entries):
            if _same(_own(rows, one), _own(rows, other), one, other, homes):
                runs[-1].append(other)
            else:
                runs.append([other])
        for run in runs:
            places = [i for i, row in enumerate(rows) for name in run[1:] if _within(row, name)]
            # Only what stands directly below the block that it looks like can be folded under it.
            first = [i for i, row in enumerate(rows) if _within(row, run[0])]
            if len(run) < LEAST or not places or places != list(range(first[-1] + 1, first[-1] + 1 + len(places))):
                continue
            gone = [row for row in rows[places[0] : places[-1] + 1] if isinstance(row, Row)]
            rows[places[0] : places[-1] + 1] = [Fold(tuple(run[1:]), tuple(gone))]
    return rows


def _within(row: Row | Fold, block: str) -> bool:
    return isinstance(row, Row) and row.weight.name.startswith(block + ".")


def _own(rows: Sequence[Row | Fold], block: str) -> list[Row]:
    return [row for row in rows if isinstance(row, Row) and _within(row, block)]


def _same(one: list[Row], other: list[Row], here: str, there: str, homes: Mapping[str, tuple[str, int, str]]) -> bool:
    """Whether two blocks look alike: the same weights, in groups that are the same or look the same from there."""
    if len(one) != len(other):
        return False

    def seen(key: str, block: str) -> object:
        name, units, kind = homes[key]
        return relative(name, block), units, kind

    for a, b in zip(one, other, strict=True):
        same = a.weight.shape == b.weight.shape and (a.weight.frozen is None) == (b.weight.frozen is None)
        if not same or a.weight.name[len(here) :] != b.weight.name[len(there) :]:
            return False
        for mine, theirs in ((a.makes, b.makes), (a.reads, b.reads)):
            if len(mine) != len(theirs) or any(
                x != y and seen(x, here) != seen(y, there) for x, y in zip(mine, theirs, strict=True)
            ):
                return False
    return True


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]
