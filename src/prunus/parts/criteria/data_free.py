"""Criteria that look at parameters only."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.evidence import Noise, Scale, SynapticFlow, Weight


@dataclass(frozen=True)
class Random(Criterion):
    """A uniform random number per unit: the baseline every criterion has to beat.

    Shapes: `[*units, 1] -> [*units, 1]`. Units: none; comparable everywhere. Cost: none.
    """

    def __call__(self, u: Noise) -> Float[Tensor, "*units 1"]:
        return u


@dataclass(frozen=True)
class Magnitude(Criterion):
    """|w|: small weights matter least (Han et al. 2015, arXiv:1506.02626). With channels and `sum`, the filter's L1
    norm (Li et al. 2017, arXiv:1608.08710).

    Shapes: `[*units, k] -> [*units, k]`. Units: those of the weights; comparable within a layer, across layers only
    where their scales are. Cost: one pass over the weights.
    """

    def __call__(self, w: Weight) -> Float[Tensor, "*units k"]:
        return w.abs()


@dataclass(frozen=True)
class L2Norm(Criterion):
    """||w||_2 of each unit (He et al. 2018, Soft Filter Pruning, arXiv:1808.06866, eq. 2 with p = 2).

    Shapes: `[*units, k] -> [*units]`. Units: those of the weights. Cost: one pass over the weights.
    """

    def __call__(self, w: Weight) -> Float[Tensor, "*units"]:
        norm: Tensor = torch.linalg.vector_norm(w, dim=-1)
        return norm


@dataclass(frozen=True)
class SignSplitMagnitude(Criterion):
    """How far from zero among the weights of its own sign in the layer: the smallest positive and the largest negative
    weights go first, in equal shares (SET: Mocanu et al. 2018, arXiv:1707.04780, Methods).

    Score: the rank of |w| among the positive (or negative) weights of the group over their number, in (0, 1]; zero
    for a weight that is exactly zero. Shapes: `[*units, k] -> [*units, k]`. Cost: one sort of the layer.
    """

    def __call__(self, w: Weight) -> Float[Tensor, "*units k"]:
        flat = w.reshape(-1)
        score = torch.zeros(flat.shape, dtype=torch.float64, device=w.device)
        for side in (flat > 0, flat < 0):
            where = side.nonzero().squeeze(1)
            order = flat[where].abs().argsort(stable=True)
            ranks = torch.arange(1, len(where) + 1, dtype=torch.float64, device=w.device)
            score[where[order]] = ranks / max(1, len(where))
        return score.reshape(w.shape)


@dataclass(frozen=True)
class SynapticSaliency(Criterion):
    """|w| dR/d|w|: synaptic flow through the unit (SynFlow: Tanaka et al. 2020, arXiv:2006.05467, eq. 1).

    Conserved from layer to layer, so that iterating it cannot collapse a layer while another can still be thinned.
    Shapes: `[*units, k] -> [*units, k]`. Units: output units of the all-ones input; comparable across the network.
    Cost: one forward and backward in float64 on a copy of the model.
    """

    def __call__(self, flow: SynapticFlow) -> Float[Tensor, "*units k"]:
        return flow.abs()


@dataclass(frozen=True)
class NormScale(Criterion):
    """|gamma|: the scale of the unit's normalization (Network Slimming: Liu et al. 2017, arXiv:1708.06519).

    Undefined on groups without a normalization, and for single weights. Shapes: `[*units, k] -> [*units, k]`, one k per
    coupled normalization. Units: standard deviations of the channel; comparable across layers. Cost: none.
    """

    def __call__(self, gamma: Scale) -> Float[Tensor, "*units k"]:
        return gamma.abs()


@dataclass(frozen=True)
class GeometricMedian(Criterion):
    """sum_j ||F_i - F_j||_2: filters near the geometric median of their layer are replaceable
    (FPGM: He et al. 2019, arXiv:1811.00250, eq. 8).

    Shapes: `[units, k] -> [units]`. Units: distance between filters, summed; comparable within a layer.
    Cost: units^2 distances, by one matrix product in float64. Fails: `SpecError` for single weights, which have no
    neighbours to be redundant with.
    """

    def __call__(self, w: Weight) -> Float[Tensor, "units"]:
        if w.ndim != 2:
            raise SpecError(
                "GeometricMedian compares whole units of a layer; single weights need another criterion "
                "(or granularity=Channel())"
            )
        return distances(w.double()).sum(1)


def distances(rows: Float[Tensor, "units k"]) -> Float[Tensor, "units units"]:
    """Euclidean distances between float64 rows, by one matrix product; where that would cancel, by their difference."""
    square = rows.square().sum(1)
    sums = square[:, None] + square[None, :]
    found = (sums - 2 * rows @ rows.T).clamp(min=0.0)
    a, b = (found < 1e-6 * sums).nonzero(as_tuple=True)
    found[a, b] = (rows[a] - rows[b]).square().sum(1)
    return found.sqrt()
