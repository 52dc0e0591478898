"""Criteria that ask which units span what a layer can do."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.part import Criterion
from prunus.parts.evidence import KeptByScale, Weight


@dataclass(frozen=True)
class LeverageScore(Criterion):
    """||U_k[j]||^2, the rows of the k leading singular vectors of the layer's filters: column subset selection (CHEX:
    Hou et al. 2022, CVPR, arXiv:2203.15794, section 3).

    k is how many units of the layer a ranking of all normalization scales would keep; the k of largest leverage are
    worth 1 more than the others, so that a global ranking keeps these k. Shapes: w `[units, m] -> [units]`. Units:
    shares of a subspace in [0, 1], plus 1. Cost: one singular value decomposition per layer. Fails: undefined without
    a normalization. Differs: filters of all layers that are coupled count as one matrix.
    """

    def __call__(self, w: Weight, wide: KeptByScale) -> Float[Tensor, "*units"]:
        stay = int(wide.sum())
        left, _, _ = torch.linalg.svd(w.double(), full_matrices=False)
        leverage = (
            left[:, :stay].square().sum(1).round(decimals=12)
        )  # of twins the earlier stays, whatever the round-off
        best = leverage.argsort(descending=True, stable=True)[:stay]
        worth: Tensor = leverage.index_add(0, best, torch.ones_like(leverage[:stay]))
        return worth
