"""Maps that look at the step an optimizer made: where it led, where gradients would have it go."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Prox
from prunus.parts.evidence import Active, Grad, Kept, Left, Maker, MakerBefore, Progress, Weight


@dataclass(frozen=True)
class HalfSpace(Prox):
    """0 where <x', x> < margin ||x||^2, x before and x' after the optimizer's step, else 1: a unit that leaves the
    half-space around where it was is projected onto zero, and stays there (HSPG, algorithm 2 of only-train-once: Chen
    et al. 2021, NeurIPS, arXiv:2107.07467).

    x is all that makes a unit (weights, normalization, bias), so that a zero unit is silent. Nothing happens before the
    fraction `begin` of the steps. Shapes: `[*units, k]`, factor `[*units]`. Cost: a copy of the weights, two products
    per weight and step. Fails: never.
    """

    margin: float = 0.0
    begin: float = 0.5
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (0 <= self.margin < 1 and 0 <= self.begin <= 1):
            raise SpecError(f"{self}: 0 <= margin < 1, 0 <= begin <= 1")

    def __call__(self, w: Maker, before: MakerBefore, progress: Progress) -> Float[Tensor, "*units"]:
        if float(progress) < self.begin:
            return torch.ones_like(w[..., 0])
        size = before.square().sum(-1)
        stays = (w * before).sum(-1) >= self.margin * size
        return (stays & (size > 0)).to(w.dtype)


@dataclass(frozen=True)
class MarkedHalfSpace(Prox):
    """0 for units that are marked to go and have left the half-space around where they were, as in `HalfSpace`, else 1
    (DHSPG, OTOv2: Chen et al. 2023, ICLR, arXiv:2303.06862, algorithm 2).

    A unit that is zero stays so while it is marked. Shapes: `[*units, k]`, factor `[*units]`. Cost: that of
    `HalfSpace`. Fails: never; nothing happens before units are marked.
    """

    margin: float = 0.0
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 1:
            raise SpecError(f"MarkedHalfSpace(margin={self.margin}): 0 <= margin < 1")

    def __call__(self, w: Maker, before: MakerBefore, kept: Kept) -> Bool[Tensor, "*units"]:
        size = before.square().sum(-1)
        return kept.squeeze(-1) | (((w * before).sum(-1) >= self.margin * size) & (size > 0))


@dataclass(frozen=True)
class Decaying(Prox):
    """(n - 1) / n for the units that are marked to go, n the steps left: each goes to zero at an even pace, while it
    trains on (only-train-once's released optimizers; Chen et al. 2023, arXiv:2312.09411).

    With `rectify` below 1 a marked unit is left alone at every step at which descent would make it grow: where the
    cosine of -g and w is at least that (the idea of the self-rectifying decay pruning method: Yang et al. 2024,
    arXiv:2406.03879). Shapes: `[*units, k]`, factor `[*units]`. Cost: a product per weight where it rectifies. Fails:
    never; nothing happens before units are marked.
    """

    rectify: float = 1.0
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.rectify <= 1:
            raise SpecError(f"Decaying(rectify={self.rectify}) is a cosine, in [0, 1]; 1 never rectifies")

    def __call__(self, w: Weight, g: Grad, kept: Kept, left: Left) -> Float[Tensor, "*units"]:
        n = float(left)
        free = kept.squeeze(-1)
        if self.rectify < 1:
            free = free | (growth(w, g) >= self.rectify)
        factor: Tensor = torch.ones_like(w[..., 0])
        return factor if n < 1 else factor.masked_fill(~free, (n - 1) / n)


def growth(w: Float[Tensor, "*units k"], g: Float[Tensor, "*units k"]) -> Float[Tensor, "*units"]:
    """The cosine of the way that descent goes and of the way that makes a unit larger; -1 for a unit of zeros."""
    sizes = torch.linalg.vector_norm(w, dim=-1) * torch.linalg.vector_norm(g, dim=-1)
    cosine: Tensor = -(w * g).sum(-1) / sizes.clamp(min=torch.finfo(w.dtype).tiny)
    return cosine.masked_fill(sizes == 0, -1.0)


@dataclass(frozen=True)
class ActiveGradient(Prox):
    """1 for the units whose |g w| is among the largest, as many as the recipe's allocation keeps, else 0: only those
    are trained, the others but decay (global sparse momentum: Ding et al. 2019, NeurIPS, arXiv:1909.12778, eqs. 4 to
    7).

    Chosen anew at every step, over whatever the allocation competes over. Weight decay and momentum are the
    optimizer's; both go on for all weights. Shapes: factor `[*units]`, on gradients. Cost: a selection per step. Fails:
    never.
    """

    lasts: ClassVar[bool] = False
    on: ClassVar[Literal["weights", "gradients"]] = "gradients"

    def __call__(self, active: Active) -> Bool[Tensor, "*units"]:
        return active.squeeze(-1)
