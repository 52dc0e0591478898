"""Thresholds that are a multiple of each layer's own spread."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.parts.allocation.ranking import GlobalRanking
from prunus.parts.allocation.selection import Rounding
from prunus.parts.evidence.weights import ParameterEvidence

Weights = Annotated[Mapping[str, Tensor], ParameterEvidence()]


@dataclass(frozen=True)
class StdQuality(Allocation):
    """score > q * std(w_l): every layer's threshold is the same multiple q of the standard deviation of its weights
    (Han et al. 2015, arXiv:1506.02626; class-distribution of See et al. 2016, arXiv:1606.09274).

    q is what leaves exactly `kept(density, all units, rounding)` units, that is, the ranking of score / std(w_l) over
    the whole network. Meant for magnitudes. The deviation is that of the weights that are left (pruned ones are not
    counted), with n in the denominator. Layers whose weights are all equal are ranked by their scores.
    Cost: one pass over the weights more than `GlobalRanking`. Differs: Han et al. choose q by hand; where it is the
    same in every layer, this is the density that it comes to.
    """

    rounding: Rounding = "floor"
    scope: ClassVar[Literal["global", "local"]] = "global"

    def __call__(self, scores: Scores, density: float, space: Space, *, weights: Weights) -> Masks:
        relative = {n: s.double() / spread(weights[n], s) for n, s in scores.items()}
        return GlobalRanking(self.rounding)(relative, density, space)


def spread(weights: Tensor, scores: Tensor) -> float:
    """The standard deviation of the weights of units that are still there; 1 where it is zero."""
    there = weights[scores > -float("inf")].double()
    deviation = float(there.std(correction=0)) if there.numel() else 0.0
    return deviation or 1.0
