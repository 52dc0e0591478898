"""Criteria from the size of units in all inputs that they are read from."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.evidence import Weight
from prunus.parts.evidence.moments import InputMoments

Aggregate = Literal["mean", "l2", "var"]


@dataclass(frozen=True)
class SecondMoment(Criterion):
    """sum over inputs of E[a^2], over all positions: of a dimension of a stream that `Rotate(per="stream")`
    turned, the eigenvalue that belongs to it (SliceGPT: Ashkboos et al. 2024, arXiv:2401.15024, section 3.3).

    What is read by several weights alike counts once. Shapes: `[units, inputs, samples, 2] -> [units]`. Units: squared
    activations; comparable within a stream. Cost: one forward per batch.
    """

    def __call__(self, m: InputMoments) -> Float[Tensor, "units"]:
        return m[..., 1].mean(2).sum(1)


@dataclass(frozen=True)
class InOrder(Criterion):
    """-k for the unit at place k: the first stay, for units that a preparation has put into order (components of a
    stream that `Rotate` turned, whose place k has the k-th largest eigenvalue).

    Shapes: `[units, k] -> [units]`. Units: places; comparable within a group. Cost: none. Fails: `SpecError` for single
    weights, which lie in no order.
    """

    def __call__(self, w: Weight) -> Float[Tensor, "units"]:
        if w.ndim != 2:
            raise SpecError("InOrder compares whole units, which lie in a row; single weights lie in no order")
        return -torch.arange(len(w), dtype=torch.float64, device=w.device)


@dataclass(frozen=True)
class AggregatedActivation(Criterion):
    """The size of what a unit puts out, aggregated over positions and then over samples, and summed over all inputs
    that it is read from: importance of heads, neurons and embedding channels (Minitron: Muralidharan et al. 2024,
    arXiv:2407.14679, section 2.2).

    Attributes: `positions` and `samples`: `mean`, `l2` (root of the mean of squares: the same order as the norm) or
    `var`. A head's size at a position is the l2 norm of its output; a neuron's and a channel's the absolute value.
    Shapes: `[units, inputs, samples, 2] -> [units]`. Units: those of the activation (squared for `var`); comparable
    within a layer. Cost: one forward per batch. Differs: a neuron is seen after its nonlinearity (and gate), where the
    paper's formula stops before it; NVIDIA's code sees it as here.
    """

    positions: Aggregate = "mean"
    samples: Aggregate = "l2"

    def __post_init__(self) -> None:
        for how in (self.positions, self.samples):
            if how not in get_args(Aggregate):
                raise SpecError(f"{self}: one of {', '.join(get_args(Aggregate))}")

    def __call__(self, m: InputMoments) -> Float[Tensor, "units"]:
        mean, square = m.unbind(-1)
        size = {"mean": mean, "l2": square.sqrt(), "var": (square - mean.square()).clamp(min=0)}[self.positions]
        over = {"mean": size.mean(2), "l2": size.square().mean(2).sqrt(), "var": size.var(2, correction=0)}
        return over[self.samples].sum(1)
