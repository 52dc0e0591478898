"""Allocations that rank: across the network, within a layer, within a row, within blocks of m."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.core.rows import rows_top_k
from prunus.parts.allocation.constraints import best_of, check_pattern
from prunus.parts.allocation.knapsack import LatencyKnapsack
from prunus.parts.allocation.selection import Rounding, kept
from prunus.parts.allocation.together import Normalize, best_together, check_normalize, normalized


@dataclass(frozen=True)
class GlobalRanking(Allocation):
    """The best units of the whole network, whichever layer they lie in.

    Exactly `kept(density, all units, rounding)` stay, and fewer only where groups keep multiples; ties go to the
    earlier unit. Groups keep their best units whatever their scores, as many as they demand (`at_least`, rounded up to
    their multiple). Cost: two passes over the scores.

    Attributes:
        rounding: of the kept count.
        normalize: what the scores of a group are divided by first: nothing, or the mean, maximum, sum or l2 norm of
            their magnitudes; or "standard" (mean 0, deviation 1). Scores that grow with the size of a layer (norms and
            sums over a unit's weights) compare only after it; pruners of coupled groups divide by the mean (DepGraph,
            Fang et al. 2023, arXiv:2301.12900).
    """

    rounding: Rounding = "floor"
    normalize: Normalize = "none"
    scope: ClassVar[Literal["global", "local"]] = "global"

    def __post_init__(self) -> None:
        check_normalize(self.normalize)

    def __call__(self, scores: Scores, density: float, space: Space) -> Masks:
        return best_together(normalized(scores, self.normalize), density, space, self.rounding)

    def timed(self, measured: bool) -> Allocation:
        """The most valuable units for the time that they take: the knapsack over the same scores."""
        return LatencyKnapsack(measured=measured, rounding=self.rounding, normalize=self.normalize)


@dataclass(frozen=True)
class Uniform(Allocation):
    """The same density everywhere: in every layer, or in every row (output unit) of every layer.

    `kept(density, units of the scope, rounding)` stay in each scope; ties go to the earlier unit. Per row is what
    post-training methods compare within (Wanda: Sun et al. 2024, arXiv:2306.11695). Cost: one selection per scope.
    """

    within: Literal["layer", "row"] = "layer"
    rounding: Rounding = "floor"
    apart: ClassVar[bool] = True

    def __call__(self, scores: Scores, density: float, space: Space) -> Masks:
        masks: Masks = {}
        for name, s in scores.items():
            if self.within == "row" and s.ndim == 2:
                masks[name] = rows_top_k(s, kept(density, s.shape[1], self.rounding))
            else:
                masks[name] = best_of(
                    space[name], s, max(kept(density, s.numel(), self.rounding), space[name].at_least)
                )
        return masks


@dataclass(frozen=True)
class LAMP(Allocation):
    """Layer-adaptive magnitude: scores squared, divided by the sum of all squares in the layer that are not smaller,
    then ranked globally (Lee et al. 2021, arXiv:2010.07611, eq. 4).

    The largest weight of every layer scores 1, so no layer is ever emptied. Within a layer the order stays that of
    the scores. Cost: one sort of each layer. Differs: computed in float64 (the official code in float32), ties by
    index.
    """

    rounding: Rounding = "floor"
    scope: ClassVar[Literal["global", "local"]] = "global"

    def __call__(self, scores: Scores, density: float, space: Space) -> Masks:
        adapted = {name: self.adapted(s) for name, s in scores.items()}
        return GlobalRanking(self.rounding)(adapted, density, space)

    def adapted(self, scores: Tensor) -> Tensor:
        """`s_u^2 / sum of s_v^2` over u and all v that come after it in ascending order, -inf staying -inf."""
        flat = scores.reshape(-1).double()
        square = flat.clamp(min=0.0).square()
        # Of equal weights the later one counts as the smaller, so that the earlier one stays.
        order = len(square) - 1 - square.flip(0).argsort(stable=True)
        remaining = square[order].flip(0).cumsum(0).flip(0)
        adapted = torch.empty_like(square)
        adapted[order] = square[order] / remaining.clamp(min=torch.finfo(torch.float64).tiny)
        return adapted.masked_fill_(flat == -torch.inf, -torch.inf).reshape(scores.shape)


@dataclass(frozen=True)
class NofM(Allocation):
    """The n best of every m consecutive weights (Zhou et al. 2021, arXiv:2102.04010; Mishra et al. 2021,
    arXiv:2104.08378).

    `along="row"`: consecutive in the row of the weight matrix `[out, in*kh*kw]`, as post-training tools and torch's
    semi-structured tensors have it. `along="input"`: consecutive input channels at each kernel position, as TensorRT
    wants convolutions. The two agree for linear layers. The density is n/m by itself; a budget that says otherwise is
    refused. Layers whose rows are no multiple of m stay dense (the engine lists them).
    """

    n: int = 2
    m: int = 4
    along: Literal["row", "input"] = "row"
    pattern: ClassVar[bool] = True
    apart: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (isinstance(self.n, int) and isinstance(self.m, int) and 0 < self.n < self.m):
            raise SpecError(f"NofM(n={self.n}, m={self.m}): n of every m weights stay, so 0 < n < m")

    @property
    def density(self) -> float:
        """The only density this pattern has."""
        return self.n / self.m

    def fits(self, shape: tuple[int, ...], weight: tuple[int, ...]) -> bool:
        """Whether a layer's rows divide into blocks of m."""
        length = weight[1] if (channels := self.along == "input" and len(weight) > 1) else shape[-1]
        return len(shape) == 2 and length % self.m == 0 and not (channels and prod(shape) != prod(weight))

    def blocks(self, weight: tuple[int, ...]) -> Int[Tensor, "columns"]:
        """Which block each column of `[out, in*kh*kw]` belongs to."""
        column, kernel = torch.arange(prod(weight[1:])), prod(weight[2:])
        if self.along == "row":
            return column // self.m
        return column // (kernel * self.m) * kernel + column % kernel

    def __call__(self, scores: Scores, density: float, space: Space) -> Masks:
        check_pattern(f"{self.n}:{self.m}", self.density, density)
        masks: Masks = {}
        for name, s in scores.items():
            weight = space[name].weight
            if density >= 1.0 or not self.fits(tuple(s.shape), weight):
                masks[name] = torch.ones_like(s, dtype=torch.bool)
            elif self.along == "input" and len(weight) > 2:
                apart = s.reshape(*weight[:2], -1).transpose(1, 2)
                best = rows_top_k(apart.reshape(-1, self.m), self.n).reshape(apart.shape)
                masks[name] = best.transpose(1, 2).reshape(s.shape)
            else:
                masks[name] = rows_top_k(s.reshape(-1, self.m), self.n).reshape(s.shape)
        return masks
