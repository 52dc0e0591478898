"""Growth by more than the gradient of the moment."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Growth
from prunus.parts.evidence import Grad, SmoothedGrad, UnitMacs


@dataclass(frozen=True)
class MomentumMagnitude(Growth):
    """|v|, the moving average of dense gradients: where they agree over steps (sparse momentum: Dettmers & Zettlemoyer
    2019, arXiv:1907.04840, section 3).

    `momentum` is that of the average, and the optimizer's in the paper. Shapes: `[*units, k] -> [*units, k]`. Cost: a
    number per weight, renewed at every step.
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not 0.0 <= self.momentum < 1.0:
            raise SpecError(f"MomentumMagnitude(momentum={self.momentum}): 0 <= momentum < 1")

    def __call__(self, v: SmoothedGrad) -> Float[Tensor, "*units k"]:
        return v.abs()


@dataclass(frozen=True)
class GainPerMac(Growth):
    """sum g^2 / (transfer + t): what a step along the gradient gains to first order, over what it takes to have the
    unit (PruneFL: Jiang et al. 2022, arXiv:1909.12326, section on adaptive pruning).

    t: multiply-accumulates per sample; `transfer`: what sending the unit takes, in the same currency. Shapes: g
    `[*units, k]`, t `[*units, 1]`, out `[*units]`. Units: comparable across the network. Cost: one run of the example
    besides the gradient of the training step at hand.
    """

    transfer: float = 1.0

    def __post_init__(self) -> None:
        if not self.transfer > 0:
            raise SpecError(f"GainPerMac(transfer={self.transfer}) is what a unit takes at least: more than nothing")

    def __call__(self, g: Grad, t: UnitMacs) -> Float[Tensor, "*units"]:
        return g.double().square().sum(-1) / (self.transfer + t.squeeze(-1))
