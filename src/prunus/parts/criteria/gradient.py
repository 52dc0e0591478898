"""Criteria from first and second derivatives of the loss."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prunus.core.part import Criterion
from prunus.parts.evidence import Affine, BatchGrad, BatchGradAffine, Grad, HessianGrad, Weight


@dataclass(frozen=True)
class ConnectionSensitivity(Criterion):
    """|g w|: the first-order change of the loss when w is removed (SNIP: Lee et al. 2019, arXiv:1810.02340, eq. 5).

    Shapes: `[*units, k] -> [*units, k]`. Units: loss; comparable across the network. Cost: one forward and backward
    per batch. Differs: the paper divides by the sum over all weights, which changes no rank and is left out.
    """

    train_mode: bool = False

    def __call__(self, w: Weight, g: Grad) -> Float[Tensor, "*units k"]:
        return (g * w).abs()


@dataclass(frozen=True)
class GradientSignal(Criterion):
    """w (Hg): how much the squared norm of the gradient falls when w is removed (GraSP: Wang et al. 2020,
    arXiv:2002.07376, eq. 8). Weights whose removal raises it most go first.

    Shapes: `[*units, k] -> [*units, k]`. Units: squared gradient norm; comparable across the network; may be
    negative. Cost: two forwards, one backward, one double backward per batch. Differs: the paper's score is -w (Hg)
    and the largest are removed, which is the same order. `temperature` divides the logits, 200 in the official code.
    """

    temperature: float = 200.0
    train_mode: bool = False

    def __call__(self, w: Weight, h: HessianGrad) -> Float[Tensor, "*units k"]:
        return w * h


@dataclass(frozen=True)
class TaylorWeight(Criterion):
    """(sum g w)^2 over the unit's weights, averaged over batches (Taylor-FO: Molchanov et al. 2019, arXiv:1906.10771,
    eq. 8 summed over the filter as in its section 3.2).

    Shapes: `[*units, k] -> [*units]`. Units: squared loss; comparable across the network.
    Cost: one forward and backward per batch.
    """

    train_mode: bool = False

    def __call__(self, w: Weight, g: BatchGrad) -> Float[Tensor, "*units"]:
        return (g * w).sum(-1).square()


@dataclass(frozen=True)
class TaylorGate(Criterion):
    """(gamma dL/dgamma + beta dL/dbeta)^2: the same at a gate behind the normalization (Taylor-FO-BN, arXiv:1906.10771,
    section 3.2), averaged over batches.

    Shapes: `[*units, k] -> [*units]`. Undefined on groups without a normalization. Units and cost as `TaylorWeight`.
    """

    train_mode: bool = False

    def __call__(self, a: Affine, g: BatchGradAffine) -> Float[Tensor, "*units"]:
        return (g * a).sum(-1).square()
