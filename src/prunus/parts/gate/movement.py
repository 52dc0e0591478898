"""Gates that score a weight by how training moves it: movement pruning, with a budget or with a threshold."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.gate import Gate, Moment
from prunus.parts.evidence import Weight


@dataclass(frozen=True)
class MovementGate(Gate):
    """1 for the units that the allocation keeps by their score S and 0 for the others, trained straight through: dL/dS
    is dL/dW' W, summed over the unit's weights W, W' what the network computes with (movement pruning: Sanh, Wolf &
    Rush 2020, NeurIPS, arXiv:2005.07683, section 4; blocks: Lagunas et al. 2021, EMNLP, arXiv:2109.04838).

    S starts at 0 and falls where a step would pull the weight towards zero. Scores of masked units go on changing, so
    that these may return; their weights get no gradient and keep their values behind the mask. Adam, at a rate that
    rises over the share `warm` of the steps and then falls to zero, both straight.

    Shapes: theta `[*units]`. Units: loss, up to the steps of Adam; the paper ranks within a weight. Cost: a selection
    per step. Differs: the official optimizer is AdamW without decay of the scores, which is Adam.
    """

    lr: float = 1e-2
    warm: float = 0.1
    selects: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.lr > 0 and 0 <= self.warm < 1):
            raise SpecError(f"{type(self).__name__}(lr={self.lr}, warm={self.warm}): lr > 0 and 0 <= warm < 1")

    def __call__(self, w: Weight) -> Float[Tensor, "*units"]:
        return torch.zeros_like(w[..., 0])

    def value(self, theta: Float[Tensor, "*units"], moment: Moment) -> Float[Tensor, "*units"]:
        assert moment.keep is not None
        return moment.keep.to(theta.dtype) + (theta - theta.detach())

    def rate(self, progress: float) -> float:
        return progress / self.warm if progress < self.warm else (1 - progress) / (1 - self.warm)

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.lr)


@dataclass(frozen=True)
class SoftMovementGate(MovementGate):
    """1 where sigmoid(S) > tau, trained straight through as `MovementGate`, with the penalty strength * tau / threshold
    * the mean over groups of their mean sigmoid(S) (soft movement pruning: Sanh, Wolf & Rush 2020, NeurIPS,
    arXiv:2005.07683, section 4, and its official code).

    tau rises from 0 to `threshold` as 1 - (1 - t)^3, t the progress from the fraction `begin` to `end` of the steps
    that gates are trained for. How many stay is left to the loss and the penalty (`open`) until the last event, which
    keeps the units of highest S, exactly to the budget: `strength` should bring the gates near it.

    Shapes, units: those of `MovementGate`. Cost: a comparison per unit and use. Differs: the paper writes S > tau and
    the sum of sigmoid(S); this is the code's form, without its floor of half a percent of every weight.
    """

    threshold: float = 0.1
    strength: float = 400.0
    begin: float = 0.1
    end: float = 0.8
    selects: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.threshold < 1 and self.strength >= 0 and 0 <= self.begin <= self.end <= 1):
            raise SpecError(f"{self}: 0 < threshold < 1, strength >= 0, 0 <= begin <= end <= 1")

    def tau(self, progress: float) -> float:
        """The threshold on sigmoid(S) at a fraction of the steps."""
        done = (progress - self.begin) / (self.end - self.begin) if progress < self.end else 1.0
        return self.threshold * (1 - (1 - max(done, 0.0)) ** 3)

    def value(self, theta: Float[Tensor, "*units"], moment: Moment) -> Float[Tensor, "*units"]:
        hard = self.open(theta.detach(), moment) if moment.progress < 1 else torch.ones_like(theta)
        return hard.to(theta.dtype) + (theta - theta.detach())

    def penalty(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment) -> Float[Tensor, ""]:
        share = torch.stack([t.sigmoid().mean() for t in thetas.values()]).mean()
        return self.strength * self.tau(moment.progress) / self.threshold * share

    def open(self, theta: Float[Tensor, "*units"], moment: Moment) -> Bool[Tensor, "*units"]:
        return theta.sigmoid() > self.tau(moment.progress)
