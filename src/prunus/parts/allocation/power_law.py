"""Widths that follow a power law of the network's size, fitted to another allocation."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from prunus.core.counting import count
from prunus.core.errors import SpecError
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.parts.allocation.dealing import HALVINGS, Counts, bounds, by_counts, rounded_to_total
from prunus.parts.allocation.ranking import GlobalRanking
from prunus.parts.allocation.wrapped import Around


@dataclass(frozen=True)
class PowerLaw(Around):
    """phi_l = alpha_l tau^beta_l: the width of each layer as a power of the network's size, fitted by least squares in
    logarithms to what the allocation inside leaves at several densities (NeuralScale: Lee & Lee 2020,
    arXiv:2006.12813).

    The sizes are `points` densities from 1 down to `lowest` in equal ratios; tau is then solved for so that exactly
    `kept(density, all units, rounding)` units stay, and the best units of each layer do. Layers that run empty
    somewhere count as one unit there. Cost: `points` times that of the allocation inside.
    Differs: tau is the number of units (the paper: of parameters); the paper fits to a pruning run with training in
    between and repeats the fit on the network found (architecture descent), and no layer here outgrows the dense one.
    """

    of: Allocation = GlobalRanking()
    points: int = 15
    lowest: float = 0.05

    def __post_init__(self) -> None:
        if self.points < 2 or not 0.0 < self.lowest < 1.0:
            raise SpecError(
                f"PowerLaw(points={self.points}, lowest={self.lowest}): at least 2 points, down to a density"
            )

    def __call__(self, scores: Scores, density: float, space: Space, **given: Any) -> Masks:
        least, most = bounds(scores, space)
        names = list(scores)
        path = self.lowest ** np.linspace(0.0, 1.0, self.points)
        widths = np.array([[max(1, count(m)) for m in self.of(scores, d, space, **given).values()] for d in path])
        alpha, beta = fitted(widths)

        def at(log_size: float) -> dict[str, float]:
            wide = np.exp(np.minimum(alpha + beta * log_size, 700.0))
            return {n: float(min(max(w, least[n]), most[n])) for n, w in zip(names, wide, strict=True)}

        def rule(total: int) -> Counts:
            low, high = -50.0, 50.0
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                low, high = (middle, high) if sum(at(middle).values()) <= total else (low, middle)
            return rounded_to_total(at(low), most, min(total, sum(most.values())))

        return by_counts(rule, scores, density, space, self.rounding)


def fitted(widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(log alpha, beta)` of every layer, by least squares of log widths on the log of their sum."""
    size = np.log(widths.sum(1))
    design = np.stack([np.ones_like(size), size], axis=1)
    (alpha, beta), *_ = np.linalg.lstsq(design, np.log(widths), rcond=None)
    return alpha, beta
