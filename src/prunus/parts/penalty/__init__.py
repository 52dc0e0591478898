"""Penalties: a term added to the loss in training that drives units towards zero."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Penalty
from prunus.parts.evidence import Scale
from prunus.parts.penalty.targeted import Anchored, GrowingL2

__all__ = ["Anchored", "GrowingL2", "ScaleL1"]


@dataclass(frozen=True)
class ScaleL1(Penalty):
    """strength * sum |gamma|: sparse normalization scales (Network Slimming: Liu et al. 2017, arXiv:1708.06519, eq. 1).

    `strength` is 1e-4 for VGG and 1e-5 for ResNet and DenseNet in the paper. Its (sub)gradient, strength *
    sign(gamma), is added to the loss's before every optimizer step. Undefined on groups without a normalization.
    """

    strength: float = 1e-4

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise SpecError(f"ScaleL1(strength={self.strength}) must not be negative")

    def __call__(self, gamma: Scale) -> Float[Tensor, ""]:
        return self.strength * gamma.abs().sum()
