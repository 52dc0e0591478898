"""Criteria that add several measures up."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prunus.core.part import Criterion
from prunus.parts.evidence.saliences import MEASURES, Saliences


@dataclass(frozen=True)
class MixedSalience(Criterion):
    """A weighted sum of ||x||, ||x|| over the number of entries, 1 + cos(x, g), |<x, g>| and <x, g>^2 / 2, x all that
    makes a unit and g its gradient, each divided by its norm over the network (HESSO: Chen et al. 2024,
    arXiv:2409.09085; the default, equal weights, is its code's).

    Shapes: `[*units, 5] -> [*units]`. Units: none; comparable across the network. Cost: one forward and backward per
    batch. Differs: gradients are those of the calibration batches, without decay and momentum.
    """

    magnitude: float = 0.2
    average: float = 0.2
    cosine: float = 0.2
    first: float = 0.2
    second: float = 0.2

    def __call__(self, s: Saliences) -> Float[Tensor, "*units"]:
        total: Tensor = (s * s.new_tensor([getattr(self, m) for m in MEASURES])).sum(-1)
        return total
