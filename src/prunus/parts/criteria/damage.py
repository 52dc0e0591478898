"""Criteria that remove units in earnest and look at the loss."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.criteria.activation import WeightedFluctuation
from prunus.parts.evidence.damage import ForwardOrder, LeaveOneOut
from prunus.parts.evidence.elimination import EliminationOrder
from prunus.parts.evidence.perturbed import Perturbed


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


@dataclass(frozen=True)
class BackwardElimination(Criterion):
    """The place at which the unit goes when units are removed one by one, each time the one without which the loss is
    least, all others being tried again after every removal (SLEB: Song et al. 2024, arXiv:2402.09025, algorithm 1).

    Shapes: `[*units, 1] -> [*units, 1]`. Units: places, over all groups together. Cost: one forward per batch for every
    unit that is left, for every unit that is removed. Differs: the paper compares perplexities, whose logarithm the
    loss of a language model is: the same order.
    """

    def __call__(self, place: EliminationOrder) -> Float[Tensor, "*units 1"]:
        return place


@dataclass(frozen=True)
class PerturbativeRegression(Criterion):
    """By how much the unit's presence lowers the loss, in a linear regression over sub-models that lack random units
    (Bonsai: Dery et al. 2024, arXiv:2402.05406, section 3.1). Forward passes only.

    Attributes: `samples` sub-models; `ridge`, the penalty; `prior`, a criterion that says which units are doubted at
    all and which are more likely to stay in a sub-model; `doubted`, how many times as many as are removed. Shapes:
    `[*units, 1] -> [*units, 1]`. Units: loss, up to a constant that all share, since sub-models are equally large;
    comparable across the network. Cost: samples forwards per batch, and the prior's. Differs: sub-models lack half of
    the doubted units, so that complements are as large; where the paper draws in proportion to the prior, here it is to
    its rank, which no scale of layers skews.
    """

    samples: int = 200
    ridge: float = 1e-4
    prior: Criterion = WeightedFluctuation()
    doubted: float = 2.0

    def __post_init__(self) -> None:
        if self.samples < 2 or self.ridge <= 0 or self.doubted < 1:
            raise SpecError(f"{self}: at least 2 samples, ridge > 0, doubted >= 1")

    def __call__(self, worth: Perturbed) -> Float[Tensor, "*units 1"]:
        return worth
