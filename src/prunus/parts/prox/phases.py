"""Maps that take turns: what is trained, and when."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.groups import Role
from prunus.core.part import Prox
from prunus.parts.evidence import Progress, Weight


@dataclass(frozen=True)
class Ticking(Prox):
    """0 for the gradients of weights and biases in a tick, the last share `tick` of the steps before an event, else 1:
    normalizations (and what reads no unit, such as a classifier) are trained alone before every pruning (Gate
    decorator: You et al. 2019, NeurIPS, arXiv:1909.08174, section 3.3).

    What is frozen is left out of the step, decay and momentum included. Shapes: `[*units, k]`, factor `[*units]`. Cost:
    one product per gradient and step. Differs: the official code freezes convolutions; here it is whatever makes units.
    """

    tick: float = 0.1
    roles: ClassVar[tuple[Role, ...]] = ("out", "bias")
    on: ClassVar[Literal["weights", "gradients"]] = "gradients"
    freezes: ClassVar[bool] = True
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.tick <= 1:
            raise SpecError(f"Ticking(tick={self.tick}) is a share of the steps between events, in [0, 1]")

    def __call__(self, w: Weight, progress: Progress) -> Float[Tensor, "*units"]:
        return torch.full_like(w[..., 0], float(float(progress) < 1 - self.tick))
