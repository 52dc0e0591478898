"""Criteria from what the readers of a unit see of it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.evidence.activations import Activation, FeatureMap
from prunus.parts.evidence.coupling import OutgoingWeight
from prunus.parts.evidence.fluctuation import ChannelFluctuation, ReaderVariance


@dataclass(frozen=True)
class MeanActivation(Criterion):
    """mean of |a| over samples and positions: units that hardly speak (a baseline of Molchanov et al. 2017,
    arXiv:1611.06440, section 2.2; there the plain mean, which is the same after a ReLU).

    Shapes: `[units, batch, values] -> [units]`. Units: those of the activation; comparable within a layer. Cost: one
    forward per batch.
    """

    def __call__(self, a: Activation) -> Float[Tensor, "units"]:
        return a.abs().mean((1, 2))


@dataclass(frozen=True)
class ActivationDeviation(Criterion):
    """Standard deviation of the activation over samples and positions: units that always say the same (a baseline of
    Molchanov et al. 2017, arXiv:1611.06440, section 2.2).

    Averaged over batches. Shapes: `[units, batch, values] -> [units]`. Units: those of the activation; comparable
    within a layer. Cost: one forward per batch.
    """

    def __call__(self, a: Activation) -> Float[Tensor, "units"]:
        return a.flatten(1).std(1, correction=0)


@dataclass(frozen=True)
class NonzeroShare(Criterion):
    """1 - APoZ: the share of samples and positions at which the unit is not zero (Network trimming: Hu et al. 2016,
    arXiv:1607.03250, eq. 1).

    `threshold`: how far from zero an activation still counts as zero (0 in the paper, which has ReLUs; smooth
    activations are never exactly zero). Shapes: `[units, batch, values] -> [units]`. Units: a share in [0, 1];
    comparable across layers. Cost: one forward per batch. Differs: read where the next layer reads, so after a pooling.
    """

    threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise SpecError(f"NonzeroShare(threshold={self.threshold}): zero or more")

    def __call__(self, a: Activation) -> Float[Tensor, "units"]:
        return (a.abs() > self.threshold).double().mean((1, 2))


@dataclass(frozen=True)
class LiveShare(Criterion):
    """The share of samples for which the unit is anything but zero everywhere (zero channels: An et al. 2020,
    arXiv:2006.09029): units of score 0 can go without any loss on the data.

    Shapes: `[units, batch, values] -> [units]`. Units: a share in [0, 1]; comparable across layers. Cost: one forward
    per batch.
    """

    def __call__(self, a: Activation) -> Float[Tensor, "units"]:
        return (a != 0).any(2).double().mean(1)


@dataclass(frozen=True)
class FeatureRank(Criterion):
    """Mean rank of the unit's feature maps (HRank: Lin et al. 2020, arXiv:2002.10179).

    The numerical rank at the usual tolerance (largest side * machine epsilon * largest singular value).
    Shapes: `[units, maps, height, width] -> [units]`. Units: a rank; comparable within a layer, across layers only
    where maps are equally large. Undefined where the next layer is no two-dimensional convolution. Cost: one forward
    and a singular value decomposition of every map. Differs: maps are those the next layer reads, after a pooling.
    """

    def __call__(self, maps: FeatureMap) -> Float[Tensor, "units"]:
        wide = maps if maps.dtype == torch.float64 else maps.float()
        ranks: Tensor = torch.linalg.matrix_rank(wide)
        return ranks.double().mean(1)


@dataclass(frozen=True)
class WeightedFluctuation(Criterion):
    """sum_j Var(x_j) ||W_:j||^2 over the unit's inputs x_j of all its readers: how much the readers' outputs move when
    the unit is replaced by its mean (WIFV of FLAP: An et al. 2024, arXiv:2312.11983).

    Shapes: two `[units, k] -> [units]`. Units: squared outputs of the readers; comparable within a layer. Undefined
    where a reader is not seen. Cost: one forward per batch. Differs: the variance over all samples and positions (n in
    the denominator); the official code updates one sample by sample.
    """

    def __call__(self, w: OutgoingWeight, v: ReaderVariance) -> Float[Tensor, "units"]:
        return (w.square() * v).sum(-1)


@dataclass(frozen=True)
class StandardFluctuation(Criterion):
    """`WeightedFluctuation` channel by channel, standardized over all channels of the layer, then averaged over the
    unit's: what the official code of FLAP compares heads and neurons by (An et al. 2024, arXiv:2312.11983).

    Units of several channels (heads) have their channels' values squared first, as in that code. Shapes: `[units,
    channels] -> [units]`. Units: standard deviations; comparable across the network. Cost: one forward per batch.
    """

    def __call__(self, f: ChannelFluctuation) -> Float[Tensor, "units"]:
        s = f.square() if f.shape[1] > 1 else f
        return ((s - s.mean()) / s.std().clamp(min=torch.finfo(s.dtype).tiny)).mean(1)
