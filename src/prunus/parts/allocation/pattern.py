"""Patterns inside kernels: which entries of a kernel stay, and which kernels."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.errors import BudgetError, SpecError
from prunus.core.groups import Group
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.core.rows import rows_top_k
from prunus.parts.allocation.constraints import check_pattern
from prunus.parts.allocation.selection import kept, top_k
from prunus.parts.allocation.wrapped import Around

CROSSES: tuple[tuple[int, ...], ...] = ((1, 3, 4, 5), (1, 3, 4, 7), (1, 4, 5, 7), (3, 4, 5, 7))
"""The centre of a 3x3 kernel and three of the four entries beside it (PCONV's SCPs, Ma et al. 2020)."""


@dataclass(frozen=True)
class KernelPattern(Allocation):
    """n of the m entries of every kernel stay, in one of a few patterns: each kernel takes the pattern with the largest
    sum of scores (PCONV: Ma et al. 2020, arXiv:1909.05073; PatDNN: Niu et al. 2020, arXiv:2001.00138).

    The library is `patterns`, or is learned: every kernel's own pattern is its n best entries (the centre and the n - 1
    best others), and the `count` most frequent ones over all layers make the library; equally frequent ones in
    lexicographic order. A kernel for which several patterns are worth the same takes the earlier one. With squared
    weights as scores this is the Euclidean projection. The density is n/m by itself; a budget that says otherwise is
    refused. Layers whose kernels do not have m entries stay dense (the engine lists them).

    Attributes:
        n: entries of a kernel that stay.
        m: entries of a kernel.
        patterns: the positions that stay, counted along the rows of the kernel; `()` learns them.
        count: how many patterns a learned library has.
        centre: whether learned patterns always hold the centre.
        shared: how many consecutive filters take one pattern together at the same input channel.
    """

    n: int = 4
    m: int = 9
    patterns: tuple[tuple[int, ...], ...] = ()
    count: int = 8
    centre: bool = True
    shared: int = 1
    pattern: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m or self.count < 1 or self.shared < 1:
            raise SpecError(f"{self}: 0 < n < m, count and shared at least 1")
        if any(len(set(p)) != self.n or not set(p) <= set(range(self.m)) for p in self.patterns):
            raise SpecError(f"{self}: a pattern is {self.n} different positions below {self.m}")

    @property
    def density(self) -> float:
        """The only density this pattern has."""
        return self.n / self.m

    def fits(self, shape: tuple[int, ...], weight: tuple[int, ...]) -> bool:
        """Whether a layer has kernels of m entries, as single weights, and filters that can share."""
        kernel = len(weight) > 2 and prod(weight[2:]) == self.m
        return kernel and prod(shape) == prod(weight) and weight[0] % self.shared == 0

    def __call__(self, scores: Scores, density: float, space: Space) -> Masks:
        check_pattern(f"{self.n} of {self.m} entries of a kernel", self.density, density)
        if density >= 1.0:
            return {name: torch.ones_like(s, dtype=torch.bool) for name, s in scores.items()}
        taken = [n for n, s in scores.items() if self.fits(tuple(s.shape), space[n].weight)]
        fitting = {n: kernels_of(scores[n], space[n], self) for n in taken}
        library = self.patterns or learned(fitting, self)
        masks: Masks = {}
        for name, s in scores.items():
            if name not in fitting:
                masks[name] = torch.ones_like(s, dtype=torch.bool)
                continue
            best = assigned(fitting[name], library).repeat_interleave(self.shared, 0)
            masks[name] = best.reshape(s.shape) & (s > -torch.inf)
        return masks


def kernels_of(
    scores: Float[Tensor, "out columns"], group: Group, pattern: KernelPattern
) -> Float[Tensor, "filters in m"]:
    """The scores of kernels, those that take a pattern together added up."""
    out, inputs = group.weight[:2]
    return scores.double().reshape(out // pattern.shared, pattern.shared, inputs, pattern.m).sum(1)


def learned(
    kernels: Mapping[str, Float[Tensor, "filters in m"]], pattern: KernelPattern
) -> tuple[tuple[int, ...], ...]:
    """The most frequent patterns of kernels that are not pruned whole."""
    seen: Counter[tuple[int, ...]] = Counter()
    for one in kernels.values():
        rows = one.reshape(-1, pattern.m)
        rows = rows[(rows > -torch.inf).any(1)].clone()
        if pattern.centre:
            rows[:, pattern.m // 2] = torch.inf
        best = rows.argsort(dim=1, descending=True, stable=True)[:, : pattern.n].sort(dim=1).values
        seen.update(tuple(p) for p in best.tolist())
    return tuple(p for p, _ in sorted(seen.items(), key=lambda item: (-item[1], item[0]))[: pattern.count])


def assigned(
    kernels: Float[Tensor, "filters in m"], library: tuple[tuple[int, ...], ...]
) -> Bool[Tensor, "filters in m"]:
    """Each kernel's best pattern: of those with the fewest pruned entries the one with the largest sum."""
    if not library:
        return torch.zeros_like(kernels, dtype=torch.bool)
    shapes = torch.zeros(len(library), kernels.shape[-1], dtype=kernels.dtype, device=kernels.device)
    shapes.scatter_(1, torch.tensor(library, device=kernels.device), 1.0)
    gone = kernels == -torch.inf
    lost = gone.to(kernels.dtype) @ shapes.T
    sums = kernels.masked_fill(gone, 0.0) @ shapes.T
    sums = sums.masked_fill(lost > lost.amin(-1, keepdim=True), -torch.inf)
    best = sums.argsort(dim=-1, descending=True, stable=True)[..., 0]
    return shapes[best] > 0


def balanced(scores: Float[Tensor, "rows columns"], k: int) -> Bool[Tensor, "rows columns"]:
    """The k best with row counts that differ by one at most, ties to the earlier; -inf never stays."""
    each, more = divmod(k, len(scores))
    even = rows_top_k(scores, each)
    if not more:
        return even
    following = rows_top_k(scores, each + 1) & ~even
    best = scores.masked_fill(~following, -torch.inf).amax(1)
    return even | following & top_k([best], more)[0].unsqueeze(1)


@dataclass(frozen=True)
class Connectivity(Around):
    """Whole kernels go first, as many in every filter, then the pattern inside shapes those that stay (PCONV's
    connectivity sparsity: Ma et al. 2020, arXiv:1909.05073).

    A kernel is worth the sum of its scores. Of the kernels of a layer the share density / (the pattern's own density)
    stays, `kept(share, kernels, rounding)` of them, so the density can be anything up to the pattern's own. Filters
    keep their best ones, equally many or, where that does not come out even, one more in the filters whose next kernel
    is best; ties go to the earlier. Layers that the pattern does not fit stay dense.
    """

    of: Allocation = KernelPattern()

    def __post_init__(self) -> None:
        if getattr(self.of, "m", None) is None or not callable(getattr(self.of, "fits", None)):
            raise SpecError(f"Connectivity(of={self.of!r}) goes around a pattern of kernels, such as KernelPattern()")

    @property
    def density(self) -> None:
        """None: any density up to the pattern's own."""
        return None

    def __call__(self, scores: Scores, density: float, space: Space, **given: Any) -> Masks:
        own, m = float(self.of.density), int(self.of.m)  # type: ignore[attr-defined]
        if density >= 1.0:
            return self.of(scores, density, space, **given)
        if density > own + 1e-9:
            raise BudgetError(
                f"{self.of} keeps at most {own:.4g} of the weights, but {density:.4g} was asked: "
                f"pass a sparsity of {1 - own:.4g} or more"
            )
        left: dict[str, Tensor] = {}
        for name, s in scores.items():
            kernels = s.reshape(s.shape[0], -1, m)
            gone = kernels == -torch.inf
            worth = kernels.double().masked_fill(gone, 0.0).sum(-1).masked_fill(gone.all(-1), -torch.inf)
            keep = balanced(worth, kept(min(density / own, 1.0), worth.numel(), self.rounding))
            left[name] = kernels.masked_fill(~keep.unsqueeze(-1), -torch.inf).reshape(s.shape)
        return self.of(left, own, space, **given)
