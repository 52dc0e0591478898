"""Where to cut: the widths that save the most time for the work that they leave out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prunus.core.groups import Group, shapes_left
from prunus.measure.prices import LayerPrices, evenly


def counts_by_time(
    prices: LayerPrices, groups: Sequence[Group], shapes: Mapping[str, tuple[int, ...]], macs: float, floor: float = 0.0
) -> dict[str, int]:
    """How many units each group keeps when a network is cut to a share of its MACs where its time is.

    Step by step the group loses `multiple` units that saves the most milliseconds for each multiplication that goes.
    Whether its units matter to the outputs is not looked at; the floor keeps layers from being cut to nothing.

    Args:
        prices: of the runtime that the network will run in.
        groups: what may be cut. shapes: of all parameters, by name.
        macs: the largest share of the layers' multiply-accumulates that may be left, in (0, 1].
        floor: the least share of every group that stays.

    Returns: group -> units; more than `macs` where every group is at its floor. Greedy, so not the best there is. Cost:
    steps * groups looks into tables.
    """
    groups = [g for g in groups if g.units > 1 and g.movable]
    kept = {g.name: g.units for g in groups}
    own = {g.name: list(dict.fromkeys(m.param for m in g.members if m.param in shapes)) for g in groups}
    calls: dict[str, list[int]] = {}
    for i, call in enumerate(prices.calls):
        calls.setdefault(call.param, []).append(i)

    def left(counts: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        return shapes_left(shapes, groups, {g.name: evenly(g, counts[g.name]) for g in groups})

    def work(of: Sequence[str], then: Mapping[str, tuple[int, ...]]) -> int:
        """Multiply-accumulates of the layers with these weights."""
        found = 0
        for param in of:
            for i in calls.get(param, ()):
                call = prices.calls[i]
                shape = call.shape if param not in then else call.narrowed(then[param])
                found += 0 if shape is None else shape.macs
        return found

    every = list(calls)
    whole = remaining = work(every, {})
    now = left(kept)
    while remaining > macs * whole:
        best: tuple[float, str, int] | None = None
        for g in groups:
            count = kept[g.name] - g.multiple
            if count < max(g.multiple, g.at_least, floor * g.units):
                continue
            then = left(kept | {g.name: count})
            fewer = work(own[g.name], now) - work(own[g.name], then)
            saved = prices.ms(now, of=own[g.name]) - prices.ms(then, of=own[g.name])
            if fewer > 0 and (best is None or saved / fewer > best[0]):
                best = (saved / fewer, g.name, count)
        if best is None:
            break
        kept[best[1]] = best[2]
        now = left(kept)
        remaining = work(every, now)
    return kept
