"""Dealing a number of units out to layers: by wanted shares, between what each must keep and what it has."""

from collections.abc import Callable, Mapping

from prunus.core.counting import count
from prunus.core.part import Masks, Scores, Space
from prunus.parts.allocation.constraints import affordable, best_of, feasible
from prunus.parts.allocation.selection import Rounding, kept

Counts = dict[str, int]
HALVINGS = 100


def by_counts(
    rule: Callable[[int], Mapping[str, int]], scores: Scores, density: float, space: Space, rounding: Rounding
) -> Masks:
    """Masks with the best units of every layer, as many as a rule gives it of all that stay.

    rule: a number of units in all -> units by layer. Exactly `kept(density, all units, rounding)` stay where the rule
    deals out what it is given, and fewer only where layers keep multiples.
    """
    total = kept(density, sum(s.numel() for s in scores.values()), rounding)
    counts = affordable(rule, space, total)
    return {name: best_of(space[name], s, counts[name]) for name, s in scores.items()}


def bounds(scores: Scores, space: Space) -> tuple[Counts, Counts]:
    """What every layer keeps anyway, and what it has at most (pruned units do not come back)."""
    most = {n: count(s > -float("inf")) for n, s in scores.items()}
    return {n: min(most[n], feasible(space[n], 0)) for n in scores}, most


def poured(wanted: Mapping[str, float], least: Mapping[str, int], most: Mapping[str, int], total: int) -> Counts:
    """Whole numbers proportional to `wanted` that sum to `total`, cut to [least, most] layer by layer.

    The scale is found by bisection, so that what one layer cannot take goes to the others; layers of which nothing is
    wanted get something only once all others are full. Rounded by largest remainders.
    """
    total = max(sum(least.values()), min(total, sum(most.values())))

    def cut(scale: float) -> dict[str, float]:
        return {n: float(min(max(scale * w, least[n]), most[n])) for n, w in wanted.items()}

    biggest = max((most[n] / w for n, w in wanted.items() if w > 0), default=0.0)
    full = cut(biggest)
    if (short := total - sum(full.values())) > 0:
        room = {n: most[n] - full[n] for n in wanted}
        space = sum(room.values())
        return rounded_to_total({n: full[n] + short * room[n] / space for n in wanted}, most, total)
    low, high = 0.0, biggest
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(cut(middle).values()) <= total else (low, middle)
    return rounded_to_total(cut(low), most, total)


def rounded_to_total(exact: Mapping[str, float], units: Mapping[str, int], total: int) -> dict[str, int]:
    """Integers within one of `exact` that sum to `total`: rounded down, the rest to the largest remainders."""
    counts = {n: min(int(e + 1e-9), units[n]) for n, e in exact.items()}
    by_remainder = sorted(exact, key=lambda n: counts[n] - exact[n])
    while (missing := total - sum(counts.values())) > 0:
        open_ = [n for n in by_remainder if counts[n] < units[n]][:missing]
        if not open_:
            break
        for n in open_:
            counts[n] += 1
    return counts
