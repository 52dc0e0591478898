"""Gates that are plain factors, held small by a penalty."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.gate import Gate, Moment
from prunus.parts.evidence import Weight


@dataclass(frozen=True)
class TargetMean(Gate):
    """theta itself, within [0, 1], with the penalty strength * (mean of all theta - density)^2 (pruning from scratch:
    Wang et al. 2020, AAAI, arXiv:1909.12579).

    The mean over the whole network is drawn to the share that is to stay, so that the loss decides where. Starts from
    1, Adam, put back into [0, 1] after every step; all parameters of the model stay as they are, its running statistics
    go on. Shapes: theta `[units]`. Units: factors, comparable everywhere. Cost: none to speak of. Differs: gates act
    where a unit is read, on every unit that can be removed; the official code has one per convolution inside a block.
    It keeps the gates of the epoch with the best validation accuracy; here they are the last.
    """

    strength: float = 0.5
    lr: float = 0.01
    freezes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.strength >= 0 and self.lr > 0):
            raise SpecError(f"{self}: strength >= 0 and lr > 0")

    def __call__(self, w: Weight) -> Float[Tensor, "*units"]:
        return torch.ones_like(w[..., 0])

    def penalty(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment) -> Float[Tensor, ""]:
        mean = torch.cat([t.abs().flatten() for t in thetas.values()]).mean()
        return self.strength * (mean - moment.density).square()

    def projected(self, theta: Float[Tensor, "*units"]) -> Float[Tensor, "*units"]:
        return theta.clamp(0, 1)

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.lr)


@dataclass(frozen=True)
class Coefficient(Gate):
    """theta itself, any number, with the penalty strength * sum |theta|: learnable coefficients of heads and neurons
    (EarlyBERT: Chen et al. 2021, ACL, arXiv:2101.00063).

    Starts from 1, Adam without decay, weights trained along. Worth |theta|. Shapes: theta `[units]`. Units: factors;
    comparable among units of one kind. Cost: none to speak of. Differs: the rate is constant (it decays linearly with
    that of the weights in the official code).
    """

    strength: float = 1e-4
    lr: float = 2e-5

    def __post_init__(self) -> None:
        if not (self.strength >= 0 and self.lr > 0):
            raise SpecError(f"{self}: strength >= 0 and lr > 0")

    def __call__(self, w: Weight) -> Float[Tensor, "*units"]:
        return torch.ones_like(w[..., 0])

    def penalty(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment) -> Float[Tensor, ""]:
        return self.strength * torch.stack([t.abs().sum() for t in thetas.values()]).sum()

    def worth(self, theta: Float[Tensor, "*units"]) -> Float[Tensor, "*units"]:
        return theta.abs()

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.lr)
