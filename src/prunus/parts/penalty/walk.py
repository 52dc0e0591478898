"""Penalties that are noise: gradients of a random walk."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Penalty
from prunus.parts.evidence import Gaussian, InitialWeight, LearningRate, Weight


@dataclass(frozen=True)
class RandomWalk(Penalty):
    """l1 * sum theta + sqrt(2 T / eta) * sum nu theta, theta = sign(w_0) w and nu standard normal, drawn anew for every
    step: with plain gradient descent theta drifts by -eta l1 and diffuses by sqrt(2 eta T) nu (DEEP R: Bellec et al.
    2018, arXiv:1711.05136, algorithm 1).

    eta: the learning rate; T: `temperature`. Only the weights that are kept feel it. Cost: one normal number per weight
    and step. Differs: the official code adds eta * 1e-5 * nu, a temperature of eta * 5e-11, the default here at its
    eta of 0.5; momentum and adaptive rates of other optimizers act on drift and noise as on any gradient.
    """

    l1: float = 1e-5
    temperature: float = 2.5e-11

    def __post_init__(self) -> None:
        if not (self.l1 >= 0 and self.temperature >= 0):
            raise SpecError(f"{self}: drift and temperature are not negative")

    def __call__(self, w: Weight, w0: InitialWeight, noise: Gaussian, rate: LearningRate) -> Float[Tensor, ""]:
        theta = torch.where(w0 < 0, -w, w)
        eta = float(rate)
        strength = (2 * self.temperature / eta) ** 0.5 if eta > 0 else 0.0
        return ((self.l1 + strength * noise) * theta).sum()
