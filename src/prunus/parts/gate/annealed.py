"""Gates that harden while they are trained."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.gate import Gate, Moment
from prunus.parts.evidence import Weight


@dataclass(frozen=True)
class Annealed(Gate):
    """sigmoid(beta theta) / sigmoid(start), with beta = final^progress, from 1 to `final`, and the penalty strength *
    sum sigmoid(beta theta) (continuous sparsification: Savarese, Silva & Maire 2020, NeurIPS, arXiv:1912.04427).

    A smooth mask that hardens into theta > 0 while mask and weights are trained together. For the next round theta
    becomes min(final * theta, start): what was dropped stays dropped, what was kept begins anew.
    SGD with momentum.

    Shapes: theta `[*units]`. Units: comparable everywhere. Cost: one sigmoid per unit and use. Differs: the division,
    which makes gates begin at 1, is that of the official code; its learning-rate steps are left to `lr`. Which units
    stay is decided by the budget, not by the sign of theta, so `start` and `strength` move theta apart, but do not set
    the density. beta grows with every step, not every epoch.
    """

    start: float = 0.0
    strength: float = 1e-8
    final: float = 200.0
    lr: float = 0.1
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not (self.strength >= 0 and self.final >= 1 and self.lr > 0 and 0 <= self.momentum < 1):
            raise SpecError(f"{self}: strength >= 0, final >= 1, lr > 0 and 0 <= momentum < 1")

    def __call__(self, w: Weight) -> Float[Tensor, "*units"]:
        return torch.full_like(w[..., 0], self.start)

    def value(self, theta: Float[Tensor, "*units"], moment: Moment) -> Float[Tensor, "*units"]:
        soft: Tensor = (self.final**moment.progress * theta).sigmoid()
        return soft * (1 + math.exp(-self.start))

    def penalty(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment) -> Float[Tensor, ""]:
        beta = self.final**moment.progress
        return self.strength * torch.stack([(beta * t).sigmoid().sum() for t in thetas.values()]).sum()

    def renewed(self, theta: Float[Tensor, "*units"]) -> Float[Tensor, "*units"]:
        return (self.final * theta).clamp(max=self.start)

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum)
