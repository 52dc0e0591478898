"""Penalties on the units that are marked to go, as strong as each of them needs."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Penalty
from prunus.parts.evidence import Kept, Maker
from prunus.parts.evidence.clusters import MakerGrad


@dataclass(frozen=True)
class RedundantLasso(Penalty):
    """sum lambda_u ||x_u|| over the units marked to go, x all that makes a unit, lambda_u such that a step makes it
    smaller and still goes down the loss, g its gradient (DHSPG, OTOv2: Chen et al. 2023, ICLR,
    arXiv:2303.06862, section 3.2, and its code).

    lambda_u = strength where <x, g> >= 0. Else, with low = -<x, g> / ||x|| and high = -||g||^2 ||x|| / <x, g>, it is
    amplify * low, at least strength and at most strength * most; and where that is beyond high, (low + high) / 2.
    Nothing is marked before the first event. Shapes: x, g `[*units, k]`. Cost: a few passes over the weights. Differs:
    g is the loss's alone, without decay and momentum, which are the optimizer's.
    """

    strength: float = 1e-3
    amplify: float = 2.0
    most: float = 10.0
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (self.strength >= 0 and self.amplify >= 1 and self.most >= 1):
            raise SpecError(f"{self}: strength not negative, amplify and most at least 1")

    def __call__(self, x: Maker, g: MakerGrad, kept: Kept) -> Float[Tensor, ""]:
        size: Tensor = torch.linalg.vector_norm(x, dim=-1)
        return (self.needed(x.detach(), g.detach()) * size * ~kept.squeeze(-1)).sum()

    def needed(self, x: Float[Tensor, "*units k"], g: Float[Tensor, "*units k"]) -> Float[Tensor, "*units"]:
        """lambda of every unit."""
        along, size = (x * g).sum(-1), torch.linalg.vector_norm(x, dim=-1)
        against = (along < 0) & (size > 0)
        low = -along / size.masked_fill(~against, 1.0)
        high = -g.square().sum(-1) * size / along.masked_fill(~against, -1.0)
        chosen = (self.amplify * low).clamp(self.strength, self.strength * self.most)
        chosen = torch.where(chosen >= high, (low + high) / 2, chosen)
        return torch.where(against, chosen, self.strength)
