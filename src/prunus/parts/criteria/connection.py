"""Criteria for connections: boxes of a weight between some inputs and some outputs."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.part import Criterion
from prunus.parts.evidence import FeedingScale, Weight


@dataclass(frozen=True)
class SquaredMagnitude(Criterion):
    """w^2: the order of magnitudes, but sums over a unit are squared Euclidean norms, so that keeping the best units
    is the Euclidean projection onto what may be kept (the Z step of ADMM pruning, Zhang et al. 2018, arXiv:1804.03294).

    Shapes: `[*units, k] -> [*units, k]`. Units: those of the weights, squared; comparable within a layer. Cost: one
    pass over the weights.
    """

    def __call__(self, w: Weight) -> Float[Tensor, "*units k"]:
        return w.square()


@dataclass(frozen=True)
class SynapticStrength(Criterion):
    """|gamma_i| ||K_oi||_F: how much an input channel says, times how much of it a kernel passes on (Lin et al. 2018,
    arXiv:1811.02454), gamma_i being the scale of the normalization before the channel.

    Undefined on weights that are not fed by a normalization. Shapes: `[*units, k] -> [*units]`. Units: standard
    deviations of the output, if inputs were independent; comparable across layers that are normalized again. Cost:
    that of finding the normalizations, one run of the example.
    """

    def __call__(self, w: Weight, gamma: FeedingScale) -> Float[Tensor, "*units"]:
        norm: Tensor = torch.linalg.vector_norm(gamma * w, dim=-1)
        return norm
