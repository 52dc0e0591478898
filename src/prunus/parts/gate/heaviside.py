"""Gates that are nearly steps from the beginning."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.gate import Gate, Moment
from prunus.parts.evidence import Noise, Weight


@dataclass(frozen=True)
class LogisticHeaviside(Gate):
    """z = 1 - exp(-gamma x) + x exp(-gamma), x = sigmoid(beta theta), with the penalty budget (V - density)^2 + crisp
    mean (z - x)^2, V the mean of sigmoid(steep (z - 1/2)): what is left (ChipNet: Tiwari et al. 2021, ICLR,
    arXiv:2102.07156, eq. 3-6 and its official code).

    Over `epochs` equal parts of the steps beta grows from 1 by 0.02 each, up to 6, gamma from 2 by sqrt(2) each, up to
    256, and steep from 10 by 5 each, up to 60. What stays is multiplied by 1. `weighs="weights"` takes V over the
    weights that units own, for a budget in parameters. Starts uniform in [0, 0.01). AdamW without decay; weights are
    trained along. A gate is open from z = 1/2 on.

    Shapes: theta `[*units]`. Units: comparable everywhere. Cost: a few functions per unit and use. Differs: parameters
    are counted by the unit, not as products of neighbouring widths, and activations (the paper's volume) not at all;
    beta, gamma and steep grow from one epoch to the next, steep in the code with every step.
    """

    budget: float = 30.0
    crisp: float = 10.0
    epochs: int = 20
    lr: float = 1e-3
    weighs: Literal["units", "weights"] = "units"

    def __post_init__(self) -> None:
        if not (self.budget >= 0 and self.crisp >= 0 and self.epochs >= 1 and self.lr > 0):
            raise SpecError(f"{self}: budget and crisp not negative, epochs at least 1, lr > 0")
        if self.weighs not in ("units", "weights"):
            raise SpecError(f"{self}: weighs is 'units' or 'weights'")

    def __call__(self, w: Weight, u: Noise) -> Float[Tensor, "*units"]:
        return 0.01 * u[..., 0].to(w.dtype)

    def slopes(self, progress: float) -> tuple[float, float, float]:
        """beta, gamma and steep."""
        epoch = min(int(progress * self.epochs), self.epochs - 1)
        return min(6.0, 1 + 0.02 * epoch), min(256.0, 2 * math.sqrt(2) ** epoch), min(60.0, 10 + 5.0 * epoch)

    def value(self, theta: Float[Tensor, "*units"], moment: Moment) -> Float[Tensor, "*units"]:
        return torch.ones_like(theta) if moment.progress >= 1 else stepped(theta, *self.slopes(moment.progress))[0]

    def penalty(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment) -> Float[Tensor, ""]:
        slopes = self.slopes(moment.progress)
        each = {n: moment.sizes[n] if self.weighs == "weights" else 1.0 for n in thetas}
        found = {n: stepped(t, *slopes) for n, t in thetas.items()}
        left = torch.stack([each[n] * (slopes[2] * (z - 0.5)).sigmoid().sum() for n, (z, _) in found.items()]).sum()
        left = left / sum(each[n] * t.numel() for n, t in thetas.items())
        crispness = torch.cat([(z - x).square().flatten() for z, x in found.values()]).mean()
        return self.budget * (left - moment.density).square() + self.crisp * crispness

    def open(self, theta: Float[Tensor, "*units"], moment: Moment) -> Bool[Tensor, "*units"]:
        return stepped(theta, *self.slopes(moment.progress))[0] > 0.5

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=0.0)


def stepped(theta: Tensor, beta: float, gamma: float, steep: float) -> tuple[Tensor, Tensor]:
    """z and x of `LogisticHeaviside`."""
    x = (beta * theta).sigmoid()
    return 1 - (-gamma * x).exp() + x * math.exp(-gamma), x
