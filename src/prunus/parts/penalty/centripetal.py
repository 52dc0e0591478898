"""Penalties that pull units of one kind together."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Penalty
from prunus.parts.evidence import Maker
from prunus.parts.evidence.clusters import Clusters, MakerGrad


@dataclass(frozen=True)
class Centripetal(Penalty):
    """strength / 2 sum ||m_u - mean of its cluster||^2 + sum <m_u, (mean of the cluster's gradients) - g_u>: units of a
    cluster are moved by their common gradient and towards each other (centripetal SGD: Ding et al. 2019, CVPR,
    arXiv:1904.03837, eq. 6), until they are equal and one of them can stand for all.

    m is all that makes a unit (weights, normalization, bias), g its gradient at the step at hand, a number; clusters
    are made before the first step, see `Clusters`. Weight decay is the optimizer's. Shapes: m, g `[units, made]`. Cost:
    a few passes over the weights. Undefined for single weights.
    """

    strength: float = 3e-3
    cluster: Literal["kmeans", "even"] = "kmeans"
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.strength >= 0 or self.cluster not in ("kmeans", "even"):
            raise SpecError(f"{self}: strength not negative, cluster 'kmeans' or 'even'")

    def __call__(self, m: Maker, g: MakerGrad, cluster: Clusters) -> Float[Tensor, ""]:
        apart: Tensor = (m - shared(m, cluster)).square().sum()
        return self.strength / 2 * apart + (m * (shared(g, cluster) - g).detach()).sum()


def shared(rows: Float[Tensor, "units k"], cluster: Int[Tensor, "units"]) -> Float[Tensor, "units k"]:
    """For every unit the mean of its cluster."""
    size = torch.bincount(cluster).to(rows)
    total = rows.new_zeros(len(size), rows.shape[1]).index_add(0, cluster, rows)
    return total[cluster] / size[cluster].unsqueeze(1)
