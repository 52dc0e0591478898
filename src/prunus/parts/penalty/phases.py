"""Penalties that take turns with something else."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Penalty
from prunus.parts.evidence import Progress, Scale


@dataclass(frozen=True)
class TockL1(Penalty):
    """strength * sum |gamma| in a tock, all but the last share `tick` of the steps before an event (Gate decorator: You
    et al. 2019, NeurIPS, arXiv:1909.08174, section 3.3).

    In the tick `Ticking` freezes what makes units; give both the same share. Shapes: gamma `[*units, k]`. Undefined on
    groups without a normalization. Cost: none to speak of.
    """

    strength: float = 1e-5
    tick: float = 0.1
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (self.strength >= 0 and 0 <= self.tick <= 1):
            raise SpecError(f"{self}: strength >= 0, and tick is a share of the steps between events, in [0, 1]")

    def __call__(self, gamma: Scale, progress: Progress) -> Float[Tensor, ""]:
        return self.strength * float(float(progress) < 1 - self.tick) * gamma.abs().sum()
