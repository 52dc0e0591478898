"""Penalties on what matrices can do to a vector."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Penalty
from prunus.parts.evidence.spectral import SpectralNorms


@dataclass(frozen=True)
class SpectralExcess(Penalty):
    """strength / 2 sum (sigma - limit)_+^2, sigma the spectral norm of every matrix of a branch or block: no matrix
    is to stretch what comes in much, so that activations of all branches stay on one scale (Yoshida & Miyato 2017,
    arXiv:1705.10941, above a limit; as a part of the identity prior of Lin et al. 2020, arXiv:2010.01791).

    Shapes: sigma `[units, matrices]`. Undefined for units that own no whole parameters. Cost: see `SpectralNorms`.
    Differs: Lin et al. divide every matrix by its norm, which other outputs follow from at once; here training gets
    there.
    """

    strength: float = 1e-2
    limit: float = 1.0
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (self.strength >= 0 and self.limit >= 0):
            raise SpecError(f"{self}: strength and limit must not be negative")

    def __call__(self, sigma: SpectralNorms) -> Float[Tensor, ""]:
        return self.strength / 2 * (sigma - self.limit).clamp(min=0).square().sum()
