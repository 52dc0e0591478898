"""Widths by lot: how many units every layer keeps is drawn, which ones the scores say."""

from dataclasses import dataclass

import torch

from prunus.core.errors import SpecError
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.parts.allocation.dealing import bounds, by_counts, poured
from prunus.parts.allocation.selection import Rounding


@dataclass(frozen=True)
class RandomWidths(Allocation):
    """u_l of its units, u_l uniform in [low, 1], for every layer l, all scaled alike to meet the budget (the candidates
    of EagleEye, Li et al. 2020, arXiv:2007.02491, section 3.2, and of random channel pruning, Li et al. 2022,
    arXiv:2205.05676).

    `draw` says which candidate: the same number draws the same widths again, so that the best of many is a recipe like
    any other. Exactly `kept(density, all units, rounding)` stay. Layers are drawn for in the order of the network.
    Cost: none. Differs: the papers draw until a network happens to fit the budget; here every draw is scaled to fit.
    """

    draw: int = 0
    low: float = 0.1
    rounding: Rounding = "floor"

    def __post_init__(self) -> None:
        if not 0.0 < self.low <= 1.0 or self.draw < 0:
            raise SpecError(f"RandomWidths(draw={self.draw}, low={self.low}): 0 < low <= 1, a draw is counted from 0")

    def __call__(self, scores: Scores, density: float, space: Space) -> Masks:
        generator = torch.Generator().manual_seed(self.draw)
        shares = self.low + (1 - self.low) * torch.rand(len(scores), generator=generator, dtype=torch.float64)
        least, most = bounds(scores, space)
        wanted = {n: float(u) * most[n] for n, u in zip(scores, shares, strict=True)}
        return by_counts(lambda k: poured(wanted, least, most, k), scores, density, space, self.rounding)
