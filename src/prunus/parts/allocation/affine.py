"""A global ranking of scores that are scaled and shifted layer by layer."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from prunus.core.errors import SpecError
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.parts.allocation.ranking import GlobalRanking
from prunus.parts.allocation.selection import Rounding


@dataclass(frozen=True)
class LearnedAffine(Allocation):
    """alpha_l score^power + kappa_l, ranked globally (LeGR: Chin et al. 2020, arXiv:1904.12368, where the score
    is the norm of a filter and the power 2).

    The numbers are learned elsewhere (`prunus.methods.legr`) and written down here; layers that are not named have
    alpha 1 and kappa 0. Exact as `GlobalRanking` is. Scores are not negative. Cost: one float64 copy of the scores.

    Attributes:
        layers: the names of the groups that alpha and kappa belong to.
        alpha: what their scores are multiplied by, positive.
        kappa: what is added then.
        power: what scores are raised to first.
        rounding: of the kept count.
    """

    layers: tuple[str, ...] = ()
    alpha: tuple[float, ...] = ()
    kappa: tuple[float, ...] = ()
    power: float = 2.0
    rounding: Rounding = "floor"
    scope: ClassVar[Literal["global", "local"]] = "global"

    def __post_init__(self) -> None:
        if not len(self.layers) == len(self.alpha) == len(self.kappa):
            raise SpecError(
                f"LearnedAffine has {len(self.layers)} layers, {len(self.alpha)} alphas and {len(self.kappa)} kappas: "
                f"one of each per layer"
            )
        if any(a <= 0 for a in self.alpha) or self.power <= 0:
            raise SpecError("LearnedAffine: alphas and the power are positive, or the order within a layer would turn")

    def __call__(self, scores: Scores, density: float, space: Space) -> Masks:
        if unknown := set(self.layers) - set(space):
            raise SpecError(
                f"LearnedAffine names layers that are not here: {sorted(unknown)}; learn it on this network"
            )
        by_layer = {n: (a, k) for n, a, k in zip(self.layers, self.alpha, self.kappa, strict=True)}
        moved = {}
        for name, s in scores.items():
            alpha, kappa = by_layer.get(name, (1.0, 0.0))
            wide = s.double()
            moved[name] = (alpha * wide.clamp(min=0.0) ** self.power + kappa).masked_fill(
                wide == -float("inf"), -float("inf")
            )
        return GlobalRanking(self.rounding)(moved, density, space)
