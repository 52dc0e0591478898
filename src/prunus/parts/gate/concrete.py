"""Hard concrete gates: stretched, clipped and differentiable samples that are exactly zero with some probability."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.gate import Moment
from prunus.parts.evidence import Noise, Weight
from prunus.parts.gate.probable import Probable, about

TINY = 1e-6


@dataclass(frozen=True)
class HardConcrete(Probable):
    """min(1, max(0, (1 + 2 stretch) sigmoid((log u - log(1 - u) + theta) / beta) - stretch)), u uniform, with the
    penalty strength * sum P(value > 0), P = sigmoid(theta - beta log(stretch / (1 + stretch))) (L0 regularization:
    Louizos, Welling & Kingma 2018, ICLR, arXiv:1712.01312, eq. 10-12).

    Starts from log((1 - drop) / drop), give or take a hundredth; theta stays within +-`bound`. `weighs="weights"`
    counts every unit as many times as it owns weights. What stays is the clipped stretch of sigmoid(theta) (`mean`, eq.
    13), of sigmoid(theta / beta), the median, or sigmoid(0.8 theta / beta) unstretched (`soft`: FLOP's code). `binary`
    rounds samples, straight through. Adam.

    Shapes: theta `[*units]`. Units: log-odds, comparable everywhere. Cost: one random number and a few functions per
    unit and use. Differs: the paper divides by the number of samples, so strength is its lambda / N; the L2 term is
    left to the optimizer's weight decay. A unit that the budget keeps although its gate is closed is multiplied by 0.
    """

    beta: float = 2 / 3
    stretch: float = 0.1
    bound: float = math.log(100.0)
    last: Literal["mean", "median", "soft"] = "mean"
    binary: bool = False
    samples: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.beta > 0 and self.stretch > 0 and self.bound > 0) or self.last not in ("mean", "median", "soft"):
            raise SpecError(f"{self}: beta, stretch and bound positive, last is 'mean', 'median' or 'soft'")

    def __call__(self, w: Weight, u: Noise) -> Float[Tensor, "*units"]:
        return about(math.log((1 - self.drop) / self.drop), u, w)

    def value(self, theta: Float[Tensor, "*units"], moment: Moment) -> Float[Tensor, "*units"]:
        if moment.noise is None and self.last == "soft":
            return (0.8 * theta / self.beta).sigmoid()
        if moment.noise is None:
            concrete = (theta if self.last == "mean" else theta / self.beta).sigmoid()
        else:
            concrete = ((moment.noise.clamp(TINY, 1 - TINY).logit() + theta) / self.beta).sigmoid()
        z = ((1 + 2 * self.stretch) * concrete - self.stretch).clamp(0, 1)
        return z + ((z > 0.5).to(z.dtype) - z).detach() if self.binary else z

    def chance(self, theta: Float[Tensor, "*units"]) -> Float[Tensor, "*units"]:
        return (theta - self.beta * math.log(self.stretch / (1 + self.stretch))).sigmoid()

    def projected(self, theta: Float[Tensor, "*units"]) -> Float[Tensor, "*units"]:
        return theta.clamp(-self.bound, self.bound)

    def open(self, theta: Float[Tensor, "*units"], moment: Moment) -> Bool[Tensor, "*units"]:
        if self.last != "soft":
            return self.value(theta, Moment(1.0, moment.density)) > 0
        return largest(theta, round(float(self.chance(theta).double().sum())))


def largest(theta: Float[Tensor, "*units"], count: int) -> Bool[Tensor, "*units"]:
    """The `count` largest, of equals the earlier."""
    best = theta.flatten().argsort(descending=True, stable=True)[:count]
    found = torch.zeros(theta.numel(), dtype=torch.bool, device=theta.device)
    return found.index_fill(0, best, True).reshape(theta.shape)
