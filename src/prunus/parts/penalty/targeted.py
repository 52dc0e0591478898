"""Penalties on what is to go: units that are marked, or the distance from a sparse point."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Penalty
from prunus.parts.evidence import Age, Anchor, Kept, Round, Weight


@dataclass(frozen=True)
class GrowingL2(Penalty):
    """lambda / 2 ||w||^2 of the units that are marked to go, where lambda grows by `step` every `every` optimizer
    steps, up to `limit` (growing regularization: Wang et al. 2021, ICLR, arXiv:2012.09243, eq. 3).

    Shapes: w `[*units, k]`. Units: lambda is a weight decay, on top of the optimizer's. Cost: one square per weight.
    Nothing before units are marked.
    """

    step: float = 1e-4
    every: int = 10
    limit: float = 1.0

    def __post_init__(self) -> None:
        if not (self.step >= 0 and self.every >= 1 and self.limit >= 0):
            raise SpecError(f"{self}: step >= 0, every >= 1, limit >= 0")

    def __call__(self, w: Weight, kept: Kept, age: Age) -> Float[Tensor, ""]:
        strength = min(self.limit, self.step * (float(age) // self.every + 1))
        return strength / 2 * w.square().sum(-1).masked_fill(kept.squeeze(-1), 0).sum()


@dataclass(frozen=True)
class Anchored(Penalty):
    """rho / 2 ||w - (Z - U)||^2: the weights' step of the alternating direction method of multipliers (Zhang et al.
    2018, ECCV, arXiv:1804.03294, eq. 5). Z is the nearest point that the recipe's granularity and allocation would
    keep, U the scaled dual, both renewed every `every` steps, Z first.

    With `rounds` the steps until the event that removes are cut into equal spans: rho grows by `factor` from each to
    the next, and U starts at zero again (ADMM-NN: Ren et al. 2019, arXiv:1812.11677). Shapes: w and z `[*units, k]`.
    Cost: one square per weight; see `Anchor`. Ends with the last event: what is left is retrained without it.
    Differs: one span where a rho is constant; the released codes renew Z and U once per epoch or every few.
    """

    rho: float = 1.5e-3
    every: int = 100
    rounds: int = 1
    factor: float = 10.0
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (self.rho >= 0 and self.every >= 1 and self.rounds >= 1 and self.factor > 0):
            raise SpecError(f"{self}: rho >= 0, every >= 1, rounds >= 1, factor > 0")

    def __call__(self, w: Weight, z: Anchor, now: Round) -> Float[Tensor, ""]:
        return self.rho * self.factor ** int(now) / 2 * (w - z.detach()).square().sum()
