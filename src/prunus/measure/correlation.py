"""How much of a network's initial weights is left in its trained ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunus.core.errors import DataError, SpecError


@dataclass(frozen=True)
class WeightCorrelation:
    """What two sets of weights have in common.

    Attributes:
        share: the share p of the weights that counts as large.
        overlap: of the p n largest magnitudes of each, the share that lies at the same positions (the correlation
            indicator of Liu et al. 2021, ICML, arXiv:2102.11068). Unrelated weights have `share`, equal ones 1.
        pearson: the correlation coefficient of the magnitudes; NaN where all of one set are equal.
        layers: the overlap of every parameter on its own.
    """

    share: float
    overlap: float
    pearson: float
    layers: Mapping[str, float]


def weight_correlation(
    first: nn.Module | Mapping[str, Tensor], second: nn.Module | Mapping[str, Tensor], *, share: float = 0.2
) -> WeightCorrelation:
    """Overlap of the largest weights, and correlation of all magnitudes, of two states of one network.

    Weights are the parameters with two axes or more. Of equal magnitudes the earlier position counts as larger.
    Cost: a sort of all weights. Errors: `SpecError` for a share that is not in (0, 1] or that names no weight,
    `DataError` for networks whose weights do not correspond.
    """
    if not 0 < share <= 1:
        raise SpecError(f"share={share} is the part of the weights that counts as large, in (0, 1]")
    a, b = weights_of(first), weights_of(second)
    if not a or {n: w.shape for n, w in a.items()} != {n: w.shape for n, w in b.items()}:
        raise DataError(
            "the two are no states of one network: their weights differ in name or shape, or there are none"
        )
    layers = {n: overlap(w.flatten(), b[n].flatten(), share) for n, w in a.items() if int(share * w.numel())}
    x, y = torch.cat([w.flatten() for w in a.values()]), torch.cat([b[n].flatten() for n in a])
    if not int(share * len(x)):
        raise SpecError(f"share={share} of {len(x)} weights is not one")
    return WeightCorrelation(share, overlap(x, y, share), float(torch.corrcoef(torch.stack([x, y]))[0, 1]), layers)


def weights_of(state: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The magnitudes of what has two axes or more, in double precision on the CPU."""
    named = dict(state.named_parameters()) if isinstance(state, nn.Module) else state
    return {n: w.detach().cpu().double().abs() for n, w in named.items() if w.ndim >= 2 and w.is_floating_point()}


def overlap(x: Float[Tensor, "n"], y: Float[Tensor, "n"], share: float) -> float:
    """Of the `share` largest entries of each, the part that lies at the same positions."""
    k = int(share * len(x))
    large = torch.zeros(2, len(x), dtype=torch.bool)
    for row, values in zip(large, (x, y), strict=True):
        row[values.argsort(descending=True, stable=True)[:k]] = True
    return int((large[0] & large[1]).sum()) / k
