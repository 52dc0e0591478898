"""Where to cut: the widths that save the most time for the work that they leave out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from prunus.core.groups import Group
from prunus.measure.prices import LayerPrices

Shapes = Mapping[str, tuple[int, ...]]


def counts_by_time(
    prices: LayerPrices, groups: Sequence[Group], shapes: Shapes, macs: float, floor: float = 0.0
) -> dict[str, int]:
    """How many units each group keeps when a network is cut to a share of its MACs where its time is.

    Step by step the group loses `multiple` units that saves the most milliseconds for each multiplication that goes.
    Then, as long as the MACs that are left get done at a higher rate, one group gets a step back, and another one loses
    as many as that takes. Whether units matter to the outputs is not looked at; the floor keeps layers from being cut
    to nothing.

    Args:
        prices: of the runtime that the network will run in.
        groups: what may be cut. shapes: of all parameters, by name.
        macs: the largest share of the layers' multiply-accumulates that may be left, in (0, 1].
        floor: the least share of every group that stays.

    Returns: group -> units; more than `macs` where every group is at its floor. Not the best there is. Cost: looks into
    tables, steps * groups to cut and groups^2 for each exchange.
    """
    cut = _Cut(prices, [g for g in groups if g.units > 1 and g.movable], shapes, floor)
    budget = macs * cut.macs(cut.now)
    while cut.macs(cut.now) > budget and (best := cut.cheapest()) is not None:
        cut.move(best, -1)
    while (swap := cut.exchange(budget)) is not None:
        for group, steps in swap:
            cut.move(group, steps)
    return cut.kept


def _rate(macs: int, ms: float) -> float:
    """MACs in a millisecond; none where nothing was timed."""
    return macs / ms if ms > 0 else 0.0


class _Cut:
    """Widths on the way."""

    def __init__(self, prices: LayerPrices, groups: Sequence[Group], shapes: Shapes, floor: float) -> None:
        self.prices, self.groups = prices, groups
        self.now = dict(shapes)
        self.kept = {g.name: g.units for g in groups}
        self.step = {g.name: math.lcm(g.multiple, g.parts) for g in groups}
        self.least = {g.name: max(self.step[g.name], g.at_least, floor * g.units) for g in groups}
        self.params = {g.name: list(dict.fromkeys(m.param for m in g.members if m.param in shapes)) for g in groups}
        self.calls: dict[str, list[int]] = {}
        for i, call in enumerate(prices.calls):
            self.calls.setdefault(call.param, []).append(i)

    def macs(self, shapes: Shapes, of: Sequence[str] | None = None) -> int:
        """Multiply-accumulates of the layers; `of`: of those with these weights."""
        found = 0
        for param in self.calls if of is None else of:
            for i in self.calls.get(param, ()):
                call = self.prices.calls[i]
                shape = call.narrowed(shapes[param]) if param in shapes else call.shape
                found += 0 if shape is None else shape.macs
        return found

    def after(self, shapes: Shapes, group: Group, steps: int) -> dict[str, tuple[int, ...]]:
        """The group's weights with so many steps more."""
        units = steps * self.step[group.name]
        found = {n: list(shapes[n]) for n in self.params[group.name]}
        for m in group.members:
            if m.param in found and m.dim is not None:
                found[m.param][m.dim] += units * (1 if m.index is None else m.index.shape[1])
        return {n: tuple(s) for n, s in found.items()}

    def gained(self, shapes: Shapes, then: Shapes) -> tuple[float, int]:
        """Milliseconds and MACs that weights with these new shapes take less."""
        of, new = list(then), {**shapes, **then}
        saved = self.prices.ms(shapes, of=of) - self.prices.ms(new, of=of)
        return saved, self.macs(shapes, of) - self.macs(new, of)

    def move(self, group: Group, steps: int) -> None:
        self.kept[group.name] += steps * self.step[group.name]
        self.now |= self.after(self.now, group, steps)

    def _can(self, group: Group, steps: int) -> bool:
        count = self.kept[group.name] + steps * self.step[group.name]
        return self.least[group.name] <= count <= group.units

    def cheapest(self) -> Group | None:
        """The group whose next step saves the most time for its MACs."""
        best: tuple[float, Group] | None = None
        for g in (g for g in self.groups if self._can(g, -1)):
            saved, fewer = self.gained(self.now, self.after(self.now, g, -1))
            if fewer > 0 and (best is None or saved / fewer > best[0]):
                best = saved / fewer, g
        return None if best is None else best[1]

    def exchange(self, budget: float) -> list[tuple[Group, int]] | None:
        """Who gets a step and who pays for it with how many, for the most MACs in a millisecond within the budget."""
        work, ms = self.macs(self.now), self.prices.ms(self.now)
        best, found = _rate(work, ms) * (1 + 1e-9), None
        for more in (g for g in self.groups if self._can(g, 1)):
            up = self.after(self.now, more, 1)
            between = {**self.now, **up}
            lost, extra = self.gained(self.now, up)
            if work - extra <= budget and (rate := _rate(work - extra, ms - lost)) > best:
                best, found = rate, [(more, 1)]
            for less in (g for g in self.groups if g is not more):
                steps = 1
                while self._can(less, -steps):
                    saved, fewer = self.gained(between, self.after(between, less, -steps))
                    left, took = work - extra - fewer, ms - lost - saved
                    if left <= budget:
                        if (rate := _rate(left, took)) > best:
                            best, found = rate, [(more, 1), (less, -steps)]
                        break
                    steps += 1
        return found
