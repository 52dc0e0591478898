"""Maps that shrink units by their norm."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Prox
from prunus.parts.evidence import Kept, LearningRate, Left, Maker, Steps, Weight
from prunus.parts.evidence.training import MarkedShare


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


@dataclass(frozen=True)
class MarkedThreshold(Prox):
    """max(0, 1 - eta strength share / ||x||) for the units that are marked to go, eta the learning rate, share the part
    of all marked units that lies in the unit's group, x all that makes the unit: the group-lasso projection that a
    controller guides (ATO: Wu et al. 2024, CVPR, arXiv:2403.14729, and its official code).

    `strength` is the first number up to the fraction `turn` of the steps before units are removed, then the second.
    Shapes: x `[*units, k]`, factor `[*units]`. Cost: one norm per unit. Fails: never; nothing happens before units are
    marked.
    """

    strength: tuple[float, float] = (10.0, 100.0)
    turn: float = 0.5
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (len(self.strength) == 2 and min(self.strength) >= 0 and 0 <= self.turn <= 1):
            raise SpecError(f"{self}: two strengths that are not negative, 0 <= turn <= 1")

    def __call__(
        self, x: Maker, kept: Kept, share: MarkedShare, rate: LearningRate, steps: Steps, left: Left
    ) -> Float[Tensor, "*units"]:
        far = float(steps) / max(1.0, float(steps) + float(left))
        pull = float(rate) * float(share) * self.strength[far >= self.turn]
        norm = torch.linalg.vector_norm(x, dim=-1)
        factor: Tensor = (1 - pull / norm.clamp(min=torch.finfo(x.dtype).tiny)).clamp(min=0)
        return factor.masked_fill(kept.squeeze(-1), 1.0)
