"""Criteria that keep the loss, or the norm of its gradient, while a network is still being trained (Lubana & Dick 2021,
arXiv:2009.11839).
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prunus.core.part import Criterion
from prunus.parts.evidence import Grad, HessianGrad, Weight


@dataclass(frozen=True)
class BiasedLoss(Criterion):
    """|w| |g w|: the change of the loss, biased towards removing what is small (arXiv:2009.11839).

    Shapes: `[*units, k] -> [*units, k]`. Units: loss times weight; comparable across the network. Cost: one forward
    and backward per batch. Differs: the official code can take the distance from initialization for |w|.
    """

    train_mode: bool = False

    def __call__(self, w: Weight, g: Grad) -> Float[Tensor, "*units k"]:
        return (w.square() * g).abs()


@dataclass(frozen=True)
class LossChange(Criterion):
    """|sum g w| over the unit: the first-order change of the loss when it is removed whole, where signs cancel
    (arXiv:2009.11839; Molchanov et al. 2017, arXiv:1611.06440, on weights).

    Shapes: `[*units, k] -> [*units]`. Units: loss; comparable across the network. Cost: one forward and backward per
    batch. For single weights it is `ConnectionSensitivity`.
    """

    train_mode: bool = False

    def __call__(self, w: Weight, g: Grad) -> Float[Tensor, "*units"]:
        return (g * w).sum(-1).abs()


@dataclass(frozen=True)
class GradientPreservation(Criterion):
    """|sum w (Hg)| over the unit: what changes the norm of the gradient least goes first, whichever way it changes it
    (arXiv:2009.11839; GraSP without the absolute value removes what raises it).

    Shapes: `[*units, k] -> [*units]`. Units: squared gradient norm; comparable across the network. Cost: two forwards,
    one backward, one double backward per batch. The official code divides no logits here (`temperature=1`). Differs: g
    runs over weights with two axes or more, in the official code over all parameters.
    """

    temperature: float = 1.0
    train_mode: bool = False

    def __call__(self, w: Weight, h: HessianGrad) -> Float[Tensor, "*units"]:
        return (w * h).sum(-1).abs()
