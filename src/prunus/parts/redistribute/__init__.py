"""Redistribution: how much each layer regrows of what was dropped anywhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Redistribution
from prunus.parts.evidence.dynamic import SmoothedGradEvidence, SurvivingEvidence
from prunus.parts.evidence.training import KeptEvidence

Masks = Annotated[Mapping[str, Tensor], KeptEvidence()]
Survivors = Annotated[Mapping[str, Tensor], SurvivingEvidence()]
Gradients = Annotated[Mapping[str, Tensor], SmoothedGradEvidence()]

__all__ = ["ByMomentum", "BySurvivors"]


@dataclass(frozen=True)
class ByMomentum(Redistribution):
    """In proportion to the mean |v| of the weights that are kept in a layer before the drop, v being the moving average
    of gradients (sparse momentum: Dettmers & Zettlemoyer 2019, arXiv:1907.04840, section 3).

    `momentum` is that of the average; a growth that asks for it as well has the same. Cost: one mean per layer.
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not 0.0 <= self.momentum < 1.0:
            raise SpecError(f"ByMomentum(momentum={self.momentum}): 0 <= momentum < 1")

    def __call__(self, v: Gradients, kept: Masks) -> Mapping[str, float]:
        live = {n: v[n].abs().mean(-1)[kept[n].squeeze(-1)] for n in v}
        return {n: float(t.mean()) if t.numel() else 0.0 for n, t in live.items()}


@dataclass(frozen=True)
class BySurvivors(Redistribution):
    """In proportion to how many units of a layer survive the drop (dynamic sparse reparameterization: Mostafa & Wang
    2019, arXiv:1902.05967, algorithm 1). Cost: one count per layer.
    """

    def __call__(self, left: Survivors) -> Mapping[str, float]:
        return {n: float(k.sum()) for n, k in left.items()}
