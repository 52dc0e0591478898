"""Redistribution: how much each layer regrows of what was dropped anywhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from prunus.core.part import Redistribution
from prunus.parts.evidence.training import KeptEvidence, MomentumEvidence

Masks = Annotated[Mapping[str, Tensor], KeptEvidence()]
Momenta = Annotated[Mapping[str, Tensor], MomentumEvidence()]

__all__ = ["ByMomentum", "BySurvivors"]


@dataclass(frozen=True)
class ByMomentum(Redistribution):
    """In proportion to the mean |momentum| of what is kept in a layer (sparse momentum: Dettmers & Zettlemoyer 2019,
    arXiv:1907.04840, section 3). Cost: one mean per layer.
    """

    def __call__(self, v: Momenta, kept: Masks) -> Mapping[str, float]:
        live = {n: v[n].abs().sum(-1)[kept[n].squeeze(-1)] for n in v}
        return {n: float(t.mean()) if t.numel() else 0.0 for n, t in live.items()}


@dataclass(frozen=True)
class BySurvivors(Redistribution):
    """In proportion to how many units of a layer are kept (dynamic sparse reparameterization: Mostafa & Wang 2019,
    arXiv:1902.05967, section 3). Cost: one count per layer.
    """

    def __call__(self, kept: Masks) -> Mapping[str, float]:
        return {n: float(k.sum()) for n, k in kept.items()}
