"""Gates that are open with a probability, which is what the loss counts."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.gate import Gate, Moment

Weighs = Literal["units", "weights", "products"]


@dataclass(frozen=True)
class Probable(Gate, ABC):
    """Gates with log-odds theta of being open and the penalty strength * sum P(open). Adam.

    `drop`: the probability with which they begin closed, or nearly. `weighs="weights"` counts every unit as many times
    as it owns weights; `weighs="products"` counts the numbers of matrices, each as often as the gates over it are all
    open: of a layer, a head and a dimension together.
    """

    strength: float = 0.1 / 60000
    drop: float = 0.5
    lr: float = 1e-3
    weighs: Weighs = "units"

    def __post_init__(self) -> None:
        if not (self.strength >= 0 and 0 < self.drop < 1 and self.lr > 0):
            raise SpecError(f"{self}: strength >= 0, 0 < drop < 1, lr > 0")
        if self.weighs not in get_args(Weighs):
            raise SpecError(f"{self}: weighs is one of {', '.join(get_args(Weighs))}")

    @abstractmethod
    def chance(self, theta: Float[Tensor, "*units"]) -> Float[Tensor, "*units"]:
        """The probability that a gate is open."""

    def penalty(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment) -> Float[Tensor, ""]:
        return self.strength * self.left(thetas, moment)[0]

    def left(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment) -> tuple[Float[Tensor, ""], float]:
        """What is expected to be left, and what there is."""
        if self.weighs == "products" and moment.left is not None:
            return moment.left({n: self.chance(t) for n, t in thetas.items()})
        each = {n: moment.sizes[n] if self.weighs == "weights" else 1.0 for n in thetas}
        expected = torch.stack([each[n] * self.chance(t).sum() for n, t in thetas.items()]).sum()
        return expected, sum(each[n] * t.numel() for n, t in thetas.items())

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.lr)


def about(odds: float, u: Float[Tensor, "*units 1"], like: Float[Tensor, "*units k"]) -> Float[Tensor, "*units"]:
    """`[*units]`: log-odds, give or take a hundredth (the deviation of a normal distribution, from uniform numbers)."""
    normal = math.sqrt(2.0) * torch.erfinv((2 * u[..., 0].to(like.dtype) - 1).clamp(-1 + 1e-6, 1 - 1e-6))
    return odds + 0.01 * normal
