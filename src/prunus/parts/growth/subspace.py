"""Growth by what the kept units do not span."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.part import Growth
from prunus.parts.evidence import Kept, Noise, Weight


@dataclass(frozen=True)
class SpanResidual(Growth):
    """Sampled without replacement with probability proportional to exp(e), e = ||w - P w||^2, P the projection onto the
    span of the kept units' weights (CHEX: Hou et al. 2022, CVPR, arXiv:2203.15794, section 3).

    The draw gives every pruned unit of a layer a place; the score is minus its place over the layer's units, so that a
    ranking across layers takes the same share of each. Shapes: w `[units, m] -> [units]`. Cost: a least-squares problem
    per layer. Differs: sampling is by the largest of e plus Gumbel noise, which is the same distribution.
    """

    def __call__(self, w: Weight, kept: Kept, u: Noise) -> Float[Tensor, "*units"]:
        rows, stay = w.double(), kept.reshape(-1)
        residual = rows
        if bool(stay.any()):
            basis = rows[stay]
            residual = rows - rows @ torch.linalg.pinv(basis) @ basis
        gumbel = -torch.log(-torch.log(u.double().clamp(1e-12, 1 - 1e-12))).reshape(-1)
        chance = (residual.square().sum(1) + gumbel).masked_fill(stay, -torch.inf)
        order = chance.argsort(descending=True, stable=True)
        place = torch.empty_like(chance)
        place[order] = torch.arange(1, len(chance) + 1, dtype=chance.dtype, device=chance.device)
        return -place / len(chance)
