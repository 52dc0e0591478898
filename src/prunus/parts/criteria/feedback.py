"""Criteria from activations and what the loss says to them."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.evidence.activations import ActivationGrad, GateGrad
from prunus.parts.evidence.gradients import BatchGradScale
from prunus.parts.evidence.tailored import LearnedScale
from prunus.parts.evidence.weights import Scale


@dataclass(frozen=True)
class TaylorActivation(Criterion):
    """|mean over positions of a dL/da|, averaged over samples: the first-order change of the loss when the feature map
    is removed (Molchanov et al. 2017, arXiv:1611.06440, section 2.2).

    `per="batch"`: the absolute value is taken of the batch's sum instead of every sample's, which is what widespread
    codes do. Read at the first reader of the unit. Shapes: `[units, batch, values, 2] -> [units]`. Units: loss per
    position; the paper divides by the l2 norm of the layer (`GlobalRanking(normalize="l2")`). Cost: one forward and
    backward per batch. Differs: the loss of one sample is the batch's times its size, so a mean over the batch is
    assumed; a sum scales all scores alike.
    """

    per: Literal["sample", "batch"] = "sample"
    train_mode: bool = False

    def __post_init__(self) -> None:
        if self.per not in ("sample", "batch"):
            raise SpecError(f"TaylorActivation(per={self.per!r}): the absolute value is taken per sample or per batch")

    def __call__(self, pair: ActivationGrad) -> Float[Tensor, "units"]:
        a, g = pair.unbind(-1)
        change = (a * g).mean(2)
        return change.abs().sum(1) if self.per == "sample" else change.sum(1).abs()


@dataclass(frozen=True)
class GateSensitivity(Criterion):
    """E |dL_n/dxi| over samples n, xi a gate of 1 on the unit: of a head, |Att_h(x)^T dL/dAtt_h(x)| (Michel et al.
    2019, arXiv:1905.10650, eq. 2).

    The gate scales the unit where all of its readers see it. Shapes: `[units, batch] -> [units]`. Units: loss;
    comparable across the network, the paper divides by the l2 norm of the layer. Undefined where a reader is not seen
    (`torch.nn.MultiheadAttention`). Cost: one forward and backward per batch. Differs: the absolute value of each
    sample's sum over tokens, as in the paper's expectation over x; the official code takes that of every token.
    """

    train_mode: bool = False

    def __call__(self, g: GateGrad) -> Float[Tensor, "units"]:
        return g.abs().mean(1)


@dataclass(frozen=True)
class ScaleSensitivity(Criterion):
    """|gamma dL/dgamma| on each batch: the first-order change of the loss when the gate on the normalized channel
    closes (Gate decorator: You et al. 2019, arXiv:1909.08174, with the gate folded into gamma).

    Shift and bias stay, as in the paper's gate. With `sum`, coupled normalizations add up, as in its group pruning.
    Shapes: `[*units, k] -> [*units, k]`. Undefined on groups without a normalization. Units: loss; comparable across
    the network. Cost: one forward and backward per batch.
    """

    train_mode: bool = False

    def __call__(self, gamma: Scale, g: BatchGradScale) -> Float[Tensor, "*units k"]:
        return (gamma * g).abs()


@dataclass(frozen=True)
class ClassHeat(Criterion):
    """The unit's part of the class activation map: mean over samples and positions of relu(-alpha a), alpha the mean of
    dL/da over the positions (after Grad-CAM: Selvaraju et al. 2017, arXiv:1610.02391, eq. 1 and 2, of one map).

    The target is minus the loss instead of a class's score. Shapes: `[units, batch, values, 2] -> [units]`. Units: loss
    per position; comparable within a layer. Cost: one forward and backward per batch.
    """

    train_mode: bool = False

    def __call__(self, pair: ActivationGrad) -> Float[Tensor, "units"]:
        a, g = pair.unbind(-1)
        heat: Tensor = torch.relu(-g.mean(2, keepdim=True) * a)
        return heat.mean(2).sum(1)


@dataclass(frozen=True)
class TailoredScale(Criterion):
    """|alpha dL/dalpha|: what it changes to first order when the unit's factor goes from alpha to 0, the factors having
    been learned on the target data with all weights fixed (TransTailor: Liu et al. 2021, arXiv:2103.01542).

    `rounds` steps of gradient descent with learning rate `rate` from alpha = 1, batches in turn. Shapes: `[units, 2] ->
    [units]`. Units: loss; comparable across the network. Cost: one forward and backward per round and per batch.
    Differs: the paper trains the factors for epochs; the order of units, not the size of alpha, is what is used, so a
    few rounds are the default.
    """

    rounds: int = 20
    rate: float = 0.01

    def __post_init__(self) -> None:
        if self.rounds < 0 or self.rate < 0:
            raise SpecError(f"{self}: rounds and rate are zero or more")

    def __call__(self, pair: LearnedScale) -> Float[Tensor, "units"]:
        scale, slope = pair.unbind(-1)
        return (scale * slope).abs()
