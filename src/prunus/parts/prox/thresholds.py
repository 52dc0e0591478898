"""Maps that shrink units by their norm."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Prox
from prunus.parts.evidence import LearningRate, Weight


@dataclass(frozen=True)
class SoftThreshold(Prox):
    """max(0, 1 - eta strength / ||w||), eta the learning rate: the proximal map of strength * sum ||w||, which is group
    lasso for structures and L1 for single weights (Parikh & Boyd 2014, sections 6.5.1 and 6.5.4).

    Shapes: w `[*units, k]`, factor `[*units]`. Cost: one norm per unit. Fails: never. Unlike the penalty's subgradient
    it makes units exactly zero.
    """

    strength: float = 1e-4

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise SpecError(f"SoftThreshold(strength={self.strength}) must not be negative")

    def __call__(self, w: Weight, rate: LearningRate) -> Float[Tensor, "*units"]:
        norm = torch.linalg.vector_norm(w, dim=-1)
        factor: Tensor = (1 - float(rate) * self.strength / norm.clamp(min=torch.finfo(w.dtype).tiny)).clamp(min=0)
        return factor
