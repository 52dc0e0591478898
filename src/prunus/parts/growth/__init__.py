"""Growth: which pruned units come back."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prunus.core.part import Growth
from prunus.parts.evidence import Grad, Noise
from prunus.parts.growth.informed import GainPerMac, MomentumMagnitude
from prunus.parts.growth.subspace import SpanResidual

__all__ = ["GainPerMac", "GradientMagnitude", "MomentumMagnitude", "RandomGrowth", "SpanResidual"]


@dataclass(frozen=True)
class RandomGrowth(Growth):
    """Uniformly at random (SET: Mocanu et al. 2018, arXiv:1707.04780). Cost: none."""

    def __call__(self, u: Noise) -> Float[Tensor, "*units 1"]:
        return u


@dataclass(frozen=True)
class GradientMagnitude(Growth):
    """|dL/dw| of the dense gradient (RigL: Evci et al. 2020, arXiv:1911.11134, section 3).

    Uses the gradient of the training step at hand. Cost: none beyond keeping that gradient dense.
    """

    def __call__(self, g: Grad) -> Float[Tensor, "*units k"]:
        return g.abs()
