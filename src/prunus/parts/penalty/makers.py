"""Penalties on all that makes a unit, its normalization and bias included."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Penalty
from prunus.parts.evidence import Maker


@dataclass(frozen=True)
class SilentLasso(Penalty):
    """strength * sum_u ||x_u||, x all that makes a unit: its weights, normalization and bias (group lasso over
    zero-invariant groups: Chen et al. 2021, NeurIPS, arXiv:2107.07467, eq. 2).

    Shapes: x `[*units, k]`. Cost: one norm per unit.
    """

    strength: float = 1e-3
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise SpecError(f"SilentLasso(strength={self.strength}) must not be negative")

    def __call__(self, x: Maker) -> Float[Tensor, ""]:
        total: Tensor = torch.linalg.vector_norm(x, dim=-1).sum()
        return self.strength * total
