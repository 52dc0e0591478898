"""Criteria by which dynamic sparse training drops weights: a weight, its gradient, its sign, its cost."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.evidence import Grad, InitialWeight, UnitMacs, Weight


@dataclass(frozen=True)
class Sensitivity(Criterion):
    """|dL/dw| / (|w| + 1e-8): how much the loss asks of a weight for its size (Nowak et al. 2023, arXiv:2306.12230).
    Shapes: `[*units, k] -> [*units, k]`. Units: comparable within a layer. Cost: one backward per batch.
    """

    train_mode: bool = False

    def __call__(self, w: Weight, g: Grad) -> Float[Tensor, "*units k"]:
        return g.abs() / (w.abs() + 1e-8)


@dataclass(frozen=True)
class ReciprocalSensitivity(Criterion):
    """|w| / (|dL/dw| + 1e-8): large weights that the loss leaves alone stay (Nowak et al. 2023, arXiv:2306.12230).
    Shapes: `[*units, k] -> [*units, k]`. Units: comparable within a layer. Cost: one backward per batch.
    """

    train_mode: bool = False

    def __call__(self, w: Weight, g: Grad) -> Float[Tensor, "*units k"]:
        return w.abs() / (g.abs() + 1e-8)


@dataclass(frozen=True)
class MagnitudeAndGradient(Criterion):
    """|w| + factor |dL/dw|: a small weight that is about to change stays too (MEST: Yuan et al. 2021,
    arXiv:2110.14032). Shapes: `[*units, k] -> [*units, k]`. Units: those of the weights; comparable
    within a layer. Cost: one backward per batch.
    """

    factor: float = 1.0
    train_mode: bool = False

    def __post_init__(self) -> None:
        if self.factor < 0:
            raise SpecError(f"MagnitudeAndGradient(factor={self.factor}) is not negative")

    def __call__(self, w: Weight, g: Grad) -> Float[Tensor, "*units k"]:
        return w.abs() + self.factor * g.abs()


@dataclass(frozen=True)
class ConstrainedWeight(Criterion):
    """theta = s w with s = sign(w_0): a connection keeps the sign it began with, and is dormant once theta < 0 (DEEP R:
    Bellec et al. 2018, arXiv:1711.05136, section 2). A weight that began at zero is positive.

    Shapes: `[*units, k] -> [*units, k]`. Units: those of the weights; what matters is the sign. Cost: a copy of all
    weights for the length of the run.
    """

    def __call__(self, w: Weight, w0: InitialWeight) -> Float[Tensor, "*units k"]:
        return torch.where(w0 < 0, -w, w)


@dataclass(frozen=True)
class SquaredGradientPerMac(Criterion):
    """g^2 / (transfer + t): what a step along the gradient gains to first order, over what it takes to have the unit
    (PruneFL: Jiang et al. 2022, arXiv:1909.12326, section on adaptive pruning).

    t: multiply-accumulates per sample; `transfer`: what sending the unit takes, in the same currency. Shapes: g
    `[*units, k]`, t `[*units, 1]`, out `[*units, k]`, to be summed. Units: comparable across the network. Cost: one
    backward per batch, one run of the example.
    """

    transfer: float = 1.0
    train_mode: bool = False

    def __post_init__(self) -> None:
        if not self.transfer > 0:
            raise SpecError(f"{self}: a unit takes more than nothing")

    def __call__(self, g: Grad, t: UnitMacs) -> Float[Tensor, "*units k"]:
        return g.double().square() / (self.transfer + t)
