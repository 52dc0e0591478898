"""Criteria by which dynamic sparse training drops weights, from a weight and its gradient."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.evidence import Grad, Weight


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
