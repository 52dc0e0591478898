"""Penalties that pull the units that are to go and those that are to stay apart."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Penalty
from prunus.parts.evidence import Age, CoupledWeight, Kept, Maker, Shrunk, Steps, Weight


@dataclass(frozen=True)
class SeparatingL2(Penalty):
    """lambda / 2 ||w||^2 of all units until some are marked, so that their magnitudes separate; from then on of the
    marked ones, growing faster, while `recover` / 2 ||w||^2 lets the others come back (GReg-2: Wang et al. 2021, ICLR,
    arXiv:2012.09243).

    Every `every` steps lambda grows by `pick`, up to `pick_limit`, and once units are marked by `step`, up to `limit`.
    Shapes: w `[*units, k]`. Cost: one square per weight. Differs: the paper picks when lambda reaches its limit, here
    the schedule says when; a negative `recover` is in the official code alone.
    """

    pick: float = 1e-5
    pick_limit: float = 1e-2
    step: float = 1e-4
    limit: float = 1.0
    recover: float = -1e-4
    every: int = 10
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (min(self.pick, self.pick_limit, self.step, self.limit) >= 0 and self.every >= 1):
            raise SpecError(f"{self}: pick, pick_limit, step and limit not negative, every >= 1")

    def __call__(self, w: Weight, kept: Kept, age: Age, steps: Steps) -> Float[Tensor, ""]:
        energy = w.square().sum(-1)
        picking = steps - age  # how long it took until the last event; 0 before the first
        before = float(age if picking == 0 else picking)
        base = min(self.pick_limit, self.pick * (before // self.every + 1))
        if picking == 0:
            return base / 2 * energy.sum()
        pushed = min(self.limit, base + self.step * (float(age) // self.every + 1))
        stays = kept.squeeze(-1)
        return (pushed * energy.masked_fill(stays, 0).sum() + self.recover * energy.masked_fill(~stays, 0).sum()) / 2


@dataclass(frozen=True)
class TrainabilityPreserving(Penalty):
    """lambda / 2 of everything that makes a marked unit, squared, and strength * lambda * mean_ij (W W^T)_ij^2 over the
    pairs of which one is marked: marked filters are decorrelated from the others before they go, so that what stays
    remains trainable (TPP: Wang & Fu 2023, ICLR, arXiv:2207.12534).

    The mean is over all pairs of a layer; lambda grows from 0 by `step` every `every` steps, up to `limit`. Shapes: w
    `[units, k]`, m `[units, l]` (weights, bias, normalization). Nothing before units are marked. Cost: units^2 products
    of filters. Fails: `SpecError` for single weights. Differs: filters of layers that are coupled (residual sums, which
    the paper leaves whole) count as one; as in the official code the weights themselves decay as well.
    """

    strength: float = 1000.0
    step: float = 1e-4
    every: int = 10
    limit: float = 1.0
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (min(self.strength, self.step, self.limit) >= 0 and self.every >= 1):
            raise SpecError(f"{self}: strength, step and limit not negative, every >= 1")

    def __call__(self, w: Weight, m: Maker, kept: Kept, age: Age) -> Float[Tensor, ""]:
        if w.ndim != 2:
            raise SpecError("TrainabilityPreserving compares whole filters of a layer: use granularity=Channel()")
        grown = min(self.limit, self.step * (float(age) // self.every))
        gone = ~kept.squeeze(-1)
        # Rows of marked units against all, and all others against them: twice the first, but for the pairs in both.
        cross = w[gone] @ w.T
        pairs = 2 * cross.square().sum() - cross[:, gone].square().sum()
        return grown * (self.strength * pairs / len(w) ** 2 + m[gone].square().sum() / 2)


@dataclass(frozen=True)
class AutoBalanced(Penalty):
    """strength (sum_P d ||w||^2 - balance * sum_R d ||w||^2): decay on the units P that are marked to go and growth on
    the rest R, with d = 1 + |log(M / theta)|, M a unit's l1 norm and theta the smallest M of the rest (auto-balanced
    filter pruning: Ding et al. 2018, AAAI).

    `balance` makes both sums equal, so that strength moves from one side to the other: the penalty is zero, its
    gradient is not. d, theta and balance are numbers, taken anew at every step. Shapes: w `[*units, k]`. Nothing where
    no unit is marked. Cost: two norms per unit. Differs: theta is that of the step at hand, in the paper it is that of
    the first.
    """

    strength: float = 1e-3
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise SpecError(f"AutoBalanced(strength={self.strength}) must not be negative")

    def __call__(self, w: Weight, kept: Kept) -> Float[Tensor, ""]:
        stays, energy = kept.squeeze(-1), w.square().sum(-1)
        if bool(stays.all()) or not bool(stays.any()):
            return 0 * energy.sum()
        factor = self.factors(w.detach(), stays)
        goes, rest = (factor * energy)[~stays].sum(), (factor * energy)[stays].sum()
        balance = goes.detach() / rest.detach().clamp(min=torch.finfo(w.dtype).tiny)
        return self.strength * (goes - balance * rest)

    def factors(self, w: Float[Tensor, "*units k"], stays: Bool[Tensor, "*units"]) -> Float[Tensor, "*units"]:
        """d of every unit."""
        size = w.abs().sum(-1).clamp(min=torch.finfo(w.dtype).tiny)
        return 1 + (size / size[stays].min()).log().abs()


@dataclass(frozen=True)
class RelativeL2(Penalty):
    """strength / 2 * sum_u 2^(alpha (I_max - I_u) / (I_max - I_min)) ||w_u||^2 over everything that goes with a unit,
    wherever it lies, I_u = ||w_u||: of a group the least important units decay 2^alpha times as fast as the most
    important ones (DepGraph: Fang et al. 2023, CVPR, arXiv:2301.12900, section 3.3).

    The factors are numbers, taken anew at every step. Shapes: w `[units, k]`. Where all units are equal, all factors
    are 1. Cost: one norm per unit. Differs: I is a norm, as in the official code, where the paper has its square.
    """

    strength: float = 5e-4
    alpha: float = 4.0
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (self.strength >= 0 and self.alpha >= 0):
            raise SpecError(f"{self}: strength and alpha must not be negative")

    def __call__(self, w: CoupledWeight) -> Float[Tensor, ""]:
        energy = w.square().sum(-1)
        size = energy.detach().sqrt()
        span = size.max() - size.min()
        factor = torch.exp2(self.alpha * (size.max() - size) / span.clamp(min=torch.finfo(w.dtype).tiny))
        return self.strength / 2 * (factor * energy).sum()


@dataclass(frozen=True)
class ShrunkAnchor(Penalty):
    """rho / 2 ||w - (F - U)||^2: the weights' step of structured sparsity regularization (SSR: Lin et al. 2019,
    arXiv:1901.07827), whose regularizer `strength` * sum ||w_u|| (l2,1) or `strength` * the number of units that are
    not zero (l2,0) is split off: see `Shrunk`, which renews F and U every `every` steps.

    Shapes: w and z `[*units, k]`. Cost: one square per weight, and that of `Shrunk`.
    """

    norm: Literal["l21", "l20"] = "l21"
    strength: float = 1e-3
    rho: float = 1e-2
    every: int = 100
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (self.strength >= 0 and self.rho > 0 and self.every >= 1) or self.norm not in ("l21", "l20"):
            raise SpecError(f"{self}: norm l21 or l20, strength not negative, rho > 0, every >= 1")

    def __call__(self, w: Weight, z: Shrunk) -> Float[Tensor, ""]:
        return self.rho / 2 * (w - z.detach()).square().sum()
