"""Penalties on the norms of units."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Penalty
from prunus.parts.evidence import OutgoingWeight, Weight


@dataclass(frozen=True)
class GroupLasso(Penalty):
    """strength * sum_u ||w_u||: group lasso (Yuan & Lin 2006; structured sparsity learning: Wen et al. 2016, NeurIPS,
    arXiv:1608.03665), over whatever the granularity makes a unit: filters, filter shapes, blocks of
    weights, residual blocks; L1 for single weights.

    Its gradient strength * w / ||w|| shrinks a unit by equal amounts, however small it is by now, and is zero at zero.
    Shapes: w `[*units, k]`. Cost: one norm per unit. Differs: filters that live and die together (residual sums) are
    one group, where the paper penalizes each layer's; groups are not weighted by the root of their size, as in the
    paper.
    """

    strength: float = 1e-4
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise SpecError(f"{type(self).__name__}(strength={self.strength}) must not be negative")

    def __call__(self, w: Weight) -> Float[Tensor, ""]:
        return self.strength * lengths(w).sum()


@dataclass(frozen=True)
class SidesLasso(Penalty):
    """strength * sum_u (||w_u|| + ||r_u||), r the weights that read the unit: group lasso over filters and, on its own,
    over the channels of the next layer (structured sparsity learning: Wen et al. 2016, NeurIPS, arXiv:1608.03665,
    with one strength for both).

    Shapes: w `[units, k]`, r `[units, j]`. Undefined where nothing reads a unit. Cost: two norms per unit.
    """

    strength: float = 1e-4
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise SpecError(f"{type(self).__name__}(strength={self.strength}) must not be negative")

    def __call__(self, w: Weight, r: OutgoingWeight) -> Float[Tensor, ""]:
        return self.strength * (lengths(w).sum() + lengths(r).sum())


@dataclass(frozen=True)
class CoupledLasso(Penalty):
    """strength * sum_u sqrt(||w_u||^2 + ||r_u||^2), r the weights that read the unit: group lasso over out-channel i of
    a layer together with in-channel i of the next (OICSR: Li et al. 2019, CVPR, arXiv:1905.11664).

    Both sides of a unit shrink at one rate, so that they vanish together. Shapes: w `[units, k]`, r `[units, j]`.
    Undefined where nothing reads a unit. Cost: two norms per unit.
    """

    strength: float = 1e-4
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise SpecError(f"{type(self).__name__}(strength={self.strength}) must not be negative")

    def __call__(self, w: Weight, r: OutgoingWeight) -> Float[Tensor, ""]:
        return self.strength * lengths(torch.stack([lengths(w), lengths(r)], dim=-1)).sum()


@dataclass(frozen=True)
class HyperbolicBias(Penalty):
    """strength * sum_u v / (1 + slope v), v the sum of |w| of a unit (Hanson & Pratt 1988, NeurIPS, "Comparing biases
    for minimal network construction with back-propagation").

    The gradient strength * sign(w) / (1 + slope v)^2 falls with v: small units are drawn to zero and large ones left
    alone. Shapes: w `[*units, k]`. Units: v is in those of the weights, so slope is in their inverse. Cost: one sum per
    unit.
    """

    strength: float = 1e-3
    slope: float = 1.0
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (self.strength >= 0 and self.slope > 0):
            raise SpecError(f"{self}: strength not negative, slope > 0")

    def __call__(self, w: Weight) -> Float[Tensor, ""]:
        size = w.abs().sum(-1)
        return self.strength * (size / (1 + self.slope * size)).sum()


@dataclass(frozen=True)
class ExponentialBias(Penalty):
    """strength * sum_u (1 - exp(-slope v)), v the sum of |w| of a unit (Hanson & Pratt 1988, NeurIPS).

    The gradient strength * slope * sign(w) exp(-slope v) leaves large units alone even more than `HyperbolicBias`.
    Shapes: w `[*units, k]`. Cost: one sum per unit.
    """

    strength: float = 1e-3
    slope: float = 1.0
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (self.strength >= 0 and self.slope > 0):
            raise SpecError(f"{self}: strength not negative, slope > 0")

    def __call__(self, w: Weight) -> Float[Tensor, ""]:
        return -self.strength * torch.expm1(-self.slope * w.abs().sum(-1)).sum()


@dataclass(frozen=True)
class GuidedLasso(Penalty):
    """strength * sum_u ||w_u|| + spread / Var_u(||w_u||^2): group lasso that is told to leave a few dominant units in
    every layer (guided structured sparsity: Torfi et al. 2018, arXiv:1802.09902).

    The variance is that of a layer's squared norms (divided by their number). A layer of one unit has none, and its
    second term is left out. Shapes: w `[*units, k]`. Cost: one norm per unit. Differs: as in the official code the
    variance is inverted; the paper's text also speaks of maximizing it.
    """

    strength: float = 1e-3
    spread: float = 1e-2
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (self.strength >= 0 and self.spread >= 0):
            raise SpecError(f"{self}: strength and spread must not be negative")

    def __call__(self, w: Weight) -> Float[Tensor, ""]:
        lasso = self.strength * lengths(w).sum()
        energy = w.square().sum(-1)
        if energy.numel() < 2:
            return lasso
        guide: Tensor = self.spread / energy.var(correction=0).clamp(min=torch.finfo(w.dtype).eps)
        return lasso + guide


def lengths(w: Float[Tensor, "*units k"]) -> Float[Tensor, "*units"]:
    """Euclidean norms of units, whose gradient at zero is zero."""
    found: Tensor = torch.linalg.vector_norm(w, dim=-1)
    return found
