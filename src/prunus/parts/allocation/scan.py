"""Densities from a sensitivity scan: layers that can bear it lose more."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.parts.allocation.dealing import HALVINGS, Counts, bounds, by_counts, poured, rounded_to_total
from prunus.parts.allocation.selection import Rounding
from prunus.parts.evidence.scan import ScanEvidence

Losses = Annotated[Mapping[str, Tensor], ScanEvidence()]


@dataclass(frozen=True)
class SensitivityScan(Allocation):
    """Every layer is pruned as far as raises the loss by the same amount, if it alone is pruned (the sensitivity scan
    of Li et al. 2017, arXiv:1608.08710, section 3.2).

    The loss is read at the densities of `grid`, made monotone (the largest rise so far) and linear in between; the
    common rise is the one at which exactly `kept(density, all units, rounding)` units stay. Below the smallest density
    of the grid, where nothing is known, all layers are thinned alike. Cost: a forward of the calibration batches for
    each layer and density of the grid. Differs: the paper looks at the accuracy and sets the densities of sensitive
    layers by hand.
    """

    grid: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
    rounding: Rounding = "floor"

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in zip((1.0, *self.grid), (*self.grid, 0.0), strict=True))
        if not self.grid or not falling:
            raise SpecError(f"SensitivityScan(grid={self.grid}): densities below 1 and above 0, the largest first")

    def __call__(self, scores: Scores, density: float, space: Space, *, losses: Losses) -> Masks:
        curves = {n: Curve((1.0, *self.grid), rise(losses[n]), s.numel()) for n, s in scores.items()}
        least, most = bounds(scores, space)
        return by_counts(lambda k: equal_rise(curves, least, most, k), scores, density, space, self.rounding)


class Curve(NamedTuple):
    """A layer's densities, how much the loss has risen at most down to each, and its units."""

    densities: tuple[float, ...]
    rises: np.ndarray
    units: int

    def wanted(self, level: float) -> float:
        """The fewest units at which the loss has risen by no more than `level`; all for a negative level."""
        if level < 0:
            return float(self.units)
        last = int(np.flatnonzero(self.rises <= level)[-1])
        density = self.densities[last]
        if last + 1 < len(self.densities):
            part = (level - self.rises[last]) / (self.rises[last + 1] - self.rises[last])
            density -= float(part) * (density - self.densities[last + 1])
        return density * self.units


def equal_rise(curves: Mapping[str, Curve], least: Counts, most: Counts, total: int) -> Counts:
    """The counts that sum to `total` where every layer raises the loss as much as every other."""
    highest = max((float(c.rises[-1]) for c in curves.values()), default=0.0)

    def at(level: float) -> dict[str, float]:
        return {n: float(min(max(c.wanted(level), least[n]), most[n])) for n, c in curves.items()}

    floor = at(highest)
    if total <= sum(floor.values()):
        thin = {n: int(np.ceil(f)) for n, f in floor.items()}
        return poured({n: float(c.units) for n, c in curves.items()}, least, thin, total)
    low, high = -1.0, highest
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle).values()) > total else (low, middle)
    # Where the loss does not change at all, one level stands for many densities: go between the two.
    more, less = at(low), at(high)
    gap = sum(more.values()) - sum(less.values())
    part = (total - sum(less.values())) / gap if gap > 0 else 0.0
    exact = {n: less[n] + part * (more[n] - less[n]) for n in curves}
    return rounded_to_total(exact, most, min(total, sum(most.values())))


def rise(losses: Tensor) -> np.ndarray:
    """How much the loss has risen at most, from dense to each density."""
    found: np.ndarray = np.maximum.accumulate((losses.double() - losses[0].double()).clamp(min=0.0).cpu().numpy())
    return found
