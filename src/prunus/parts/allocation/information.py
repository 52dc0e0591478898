"""Layer widths from how much information their feature maps carry."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.parts.allocation.dealing import Counts, bounds, by_counts, poured
from prunus.parts.allocation.selection import Rounding
from prunus.parts.evidence.activations import FeatureMapEvidence
from prunus.parts.evidence.mode import averaged_over_ranks

Maps = Annotated[Mapping[str, Tensor], FeatureMapEvidence()]


@dataclass(frozen=True)
class InformationConcentration(Allocation):
    """A layer keeps units in proportion to its units times its information concentration: the harmonic mean of the
    entropy and of the mean rank of its feature maps, each over the largest of all layers (inspired by Chen & Wang 2024,
    arXiv:2408.16772).

    Entropy: of the histogram of all values of the layer in `bins` equal bins between their least and largest, over
    log(bins). Rank: numerical, over the shorter side of the maps. From the first calibration batch. The total is
    exactly `kept(density, all units, rounding)`; layers without maps (read by no convolution) count with the mean of
    the others. Cost: one forward and a singular value decomposition of every map. Differs: the paper's fusion function
    could not be verified.
    """

    bins: int = 256
    rounding: Rounding = "floor"

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise SpecError(f"InformationConcentration(bins={self.bins}): at least two bins")

    def __call__(self, scores: Scores, density: float, space: Space, *, maps: Maps) -> Masks:
        own = self.concentration({n: maps[n] for n in scores if n in maps})
        shares = {
            n: float(s)
            for n, s in averaged_over_ranks({n: torch.tensor(s, dtype=torch.float64) for n, s in own.items()}).items()
        }
        usual = sum(shares.values()) / len(shares) if shares else 1.0
        least, most = bounds(scores, space)
        wanted = {n: s.numel() * shares.get(n, usual) for n, s in scores.items()}

        def rule(total: int) -> Counts:
            return poured(wanted, least, most, total)

        return by_counts(rule, scores, density, space, self.rounding)

    def concentration(self, maps: Mapping[str, Float[Tensor, "units maps height width"]]) -> dict[str, float]:
        """Layer name -> information concentration, in [0, 1]."""
        entropy = {n: entropy_of(m, self.bins) for n, m in maps.items()}
        # In the maps' own precision: what is round-off there is none in float64.
        wide = {n: m if m.dtype == torch.float64 else m.float() for n, m in maps.items()}
        rank = {n: float(torch.linalg.matrix_rank(m).double().mean()) / min(m.shape[2:]) for n, m in wide.items()}
        tops = [max(kind.values(), default=0.0) or 1.0 for kind in (entropy, rank)]
        pairs = {n: (entropy[n] / tops[0], rank[n] / tops[1]) for n in maps}
        return {n: 2 * e * r / (e + r) if e + r > 0 else 0.0 for n, (e, r) in pairs.items()}


def entropy_of(values: Float[Tensor, "..."], bins: int) -> float:
    """The entropy of a histogram over its largest possible value; 0 where all values are equal."""
    flat = values.reshape(-1).double()
    low, high = flat.min(), flat.max()
    if low == high:
        return 0.0
    place = ((flat - low) / (high - low) * bins).long().clamp(max=bins - 1)
    share = torch.bincount(place, minlength=bins).double() / flat.numel()
    return float(-torch.xlogy(share, share).sum() / torch.tensor(float(bins)).log())
