"""Criteria that remove units in earnest and look at the loss."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.evidence.damage import ForwardOrder, LeaveOneOut


@dataclass(frozen=True)
class LossRise(Criterion):
    """How much the loss rises when the unit alone is removed (CAR: Abbasi-Asl & Yu 2017, arXiv:1705.07356).

    Negative where the network is better without. Shapes: `[*units, 1] -> [*units, 1]`. Units: loss; comparable across
    the network. Cost: one forward per batch for every unit: the exact quantity that gradient criteria approximate.
    Differs: the paper counts the fall of the accuracy, which a task does not name and many units tie in.
    """

    def __call__(self, rise: LeaveOneOut) -> Float[Tensor, "*units 1"]:
        return rise


@dataclass(frozen=True)
class ForwardSelection(Criterion):
    """How early the unit is taken up when a layer is built up from nothing, each time by the unit with which the loss
    is least (GFS: Ye et al. 2020, arXiv:2003.01794, algorithm 1).

    Shapes: `[*units, 1] -> [*units, 1]`. Units: ranks, the first one highest; compare within a layer. Cost: units^2 / 2
    forwards per batch and layer; `candidates` tries only so many, drawn anew at each step (50 in the official code).
    Attributes: `average` scales the chosen n of N units by N / n while selecting, as the paper does.
    Differs: each layer is selected with the others whole, and a unit is taken up once (so does the official code while
    layers before stay pruned; the paper allows repeats, as weights).
    """

    candidates: int | None = 50
    average: bool = True

    def __post_init__(self) -> None:
        if self.candidates is not None and self.candidates < 1:
            raise SpecError(f"ForwardSelection(candidates={self.candidates}): at least one unit is tried, or None: all")

    def __call__(self, order: ForwardOrder) -> Float[Tensor, "*units 1"]:
        return order
