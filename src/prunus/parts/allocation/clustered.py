"""Allocations that turn scattered weights into dense pieces: whole filters, groups of filters, clusters."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.parts.allocation.ranking import GlobalRanking
from prunus.parts.allocation.selection import kept, top_k
from prunus.parts.allocation.wrapped import Around


class Coarser(Around):
    """An allocation of single weights whose masks are made coarser, layer by layer."""

    @property
    def pattern(self) -> bool:  # type: ignore[override]
        """Single weights are taken, and a pattern comes out."""
        return True

    @property
    def fits(self) -> Callable[[tuple[int, ...], tuple[int, ...]], bool]:
        """Which layers are matrices of single weights."""
        return lambda shape, weight: len(shape) == 2

    def __call__(self, scores: Scores, density: float, space: Space, **given: Any) -> Masks:
        fine = self.of(scores, density, space, **given)
        return fine if density >= 1.0 else {n: self.coarse(m, scores[n].double()) for n, m in fine.items()}

    @abstractmethod
    def coarse(self, mask: Bool[Tensor, "out in"], scores: Float[Tensor, "out in"]) -> Bool[Tensor, "out in"]:
        """The mask of one layer, in dense pieces of about as many weights."""


@dataclass(frozen=True)
class Refill(Coarser):
    """Of every layer the filters that keep the most weights become dense, the others go (refilling: Chen et al. 2022,
    arXiv:2202.04736, algorithm 2).

    A layer that keeps a share s of its weights keeps `kept(s, filters, rounding)` filters, and `more` of the remaining
    ones (Refill+). Equally many kept weights: the larger sum of scores, then the earlier filter. Filters are not
    coupled with what reads them, as in the paper. Differs: the official code keeps one filter more where the share
    comes out even, and draws lots among ties.

    Attributes:
        of: which single weights stay.
        more: the fraction of the filters that would go that stay after all.
    """

    of: Allocation = GlobalRanking()
    more: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.more < 1.0:
            raise SpecError(f"Refill(more={self.more}) is a fraction of the filters that would go, in [0, 1)")

    def coarse(self, mask: Bool[Tensor, "out in"], scores: Float[Tensor, "out in"]) -> Bool[Tensor, "out in"]:
        """Whole rows."""
        rows = len(mask)
        n = kept(int(mask.sum()) / mask.numel(), rows, self.rounding)
        n += int(self.more * (rows - n))
        # Filters that were pruned whole have no kept weight and do not come back.
        worth = mask.sum(1).double().masked_fill(~mask.any(1), -torch.inf)
        best = top_k([ranks(worth, scores.masked_fill(~mask, 0.0).sum(1))], n)[0]
        return best.unsqueeze(1).expand(mask.shape).clone()


@dataclass(frozen=True)
class Regroup(Coarser):
    """Filters that keep the same columns are put into groups, and whole columns of a group are dense or gone
    (regrouping: Chen et al. 2022, arXiv:2202.04736, algorithm 3).

    The filters of a layer are cut in halves that have as few kept columns in common as possible, and again, until a
    group has `rows` filters at most. Of all strips (one column of one group) those with the largest share of kept
    weights stay, of equals those with the larger mean score, as many as the layer's kept weights allow and at least
    one; so a layer keeps less than one strip fewer or more weights than the allocation inside gives it.

    Differs: the paper partitions the hypergraph of filters and columns with hMETIS, here it is spectral bisection
    (`halves`); the paper takes columns up to a density of its own, here up to the budget, and it also drops groups of
    few filters. Cost: a few singular value decompositions per layer.

    Attributes:
        of: which single weights stay.
        rows: filters in a group, at most.
    """

    of: Allocation = GlobalRanking()
    rows: int = 16

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise SpecError(f"Regroup(rows={self.rows}): a group has at least 1 filter")

    def coarse(self, mask: Bool[Tensor, "out in"], scores: Float[Tensor, "out in"]) -> Bool[Tensor, "out in"]:
        """Dense columns of groups of rows."""
        groups = [torch.arange(len(mask), device=mask.device)]
        while any(len(g) > self.rows for g in groups):
            groups = [h for g in groups for h in (halves(mask[g].double(), g) if len(g) > self.rows else (g,))]
        share = torch.stack([mask[g].double().mean(0) for g in groups])
        finite = scores.masked_fill(scores == -torch.inf, 0.0)
        worth = torch.stack([finite[g].mean(0) for g in groups]).masked_fill(share == 0, -torch.inf)
        order = ranks(share.masked_fill(share == 0, -torch.inf), worth).reshape(-1).argsort(descending=True)
        sizes = torch.tensor([len(g) for g in groups], device=mask.device).unsqueeze(1).expand(share.shape).reshape(-1)
        fits = sizes[order].cumsum(0) <= int(mask.sum())
        fits[0] = True
        fits &= share.reshape(-1)[order] > 0
        dense = torch.zeros_like(share, dtype=torch.bool).reshape(-1)
        dense[order[fits]] = True
        out = torch.zeros_like(mask)
        for g, columns in zip(groups, dense.reshape(share.shape), strict=True):
            out[g] = columns
        return out


@dataclass(frozen=True)
class Clustered(Coarser):
    """Weights outside of clusters go first: rows and columns are put into clusters of at most `size` of each, so that
    much lies inside (crossbars of bounded size; inspired by TraNNsformer, Ankit et al. 2017, arXiv:1708.07949).

    The kept weights of a layer are a graph between its rows and its columns, which is cut in halves, and again, until
    no cluster has more than `size` rows or columns (`cocluster`). As many weights stay in a layer as the allocation
    inside gives it, exactly: those inside clusters first, by their score, then the others.
    Cost: a few singular value decompositions per layer.

    Attributes:
        of: which single weights stay.
        size: rows and columns of a cluster, at most.
    """

    of: Allocation = GlobalRanking()
    size: int = 64

    def __post_init__(self) -> None:
        if self.size < 1:
            raise SpecError(f"Clustered(size={self.size}): a cluster has at least 1 row")

    def coarse(self, mask: Bool[Tensor, "out in"], scores: Float[Tensor, "out in"]) -> Bool[Tensor, "out in"]:
        """As many weights as the mask has, clustered ones first."""
        weights = scores.masked_fill(~mask | ~scores.isfinite(), 0.0).clamp(min=0.0)
        rows, columns = cocluster(weights, self.size)
        inside = (rows.unsqueeze(1) == columns.unsqueeze(0)).double()
        both = ranks(inside.masked_fill(scores == -torch.inf, -torch.inf), scores)
        return top_k([both], int(mask.sum()))[0]


def ranks(first: Float[Tensor, "*units"], then: Float[Tensor, "*units"]) -> Float[Tensor, "*units"]:
    """Numbers in the order of `first`, of equals in that of `then`, then of the place; -inf stays -inf."""
    a, b = first.reshape(-1), then.reshape(-1)
    order = b.argsort(descending=True, stable=True)
    order = order[a[order].argsort(descending=True, stable=True)]
    out = torch.empty_like(a, dtype=torch.float64)
    out[order] = torch.arange(len(a), 0, -1, dtype=torch.float64, device=a.device)
    return out.masked_fill(a == -torch.inf, -torch.inf).reshape(first.shape)


def leaning(matrix: Float[Tensor, "rows columns"]) -> tuple[Float[Tensor, "rows"], Float[Tensor, "columns"]]:
    """Where rows and columns lie along the best cut of the graph between them: the second singular vectors of
    D_r^-1/2 A D_c^-1/2, scaled back (spectral co-clustering: Dhillon 2001, KDD).
    """
    row = matrix.sum(1).clamp(min=1e-12).rsqrt()
    column = matrix.sum(0).clamp(min=1e-12).rsqrt()
    if min(matrix.shape) < 2:
        return torch.zeros_like(row), torch.zeros_like(column)
    u, _, v = torch.linalg.svd(row.unsqueeze(1) * matrix * column, full_matrices=False)
    left, right = u[:, 1] * row, v[1] * column
    sign = left[left.abs().argmax()].sign()  # a singular vector has no sign of its own
    return left * sign, right * sign


def halves(matrix: Float[Tensor, "rows columns"], names: Int[Tensor, "rows"]) -> tuple[Tensor, Tensor]:
    """The rows in two equal parts, cut along where they lean."""
    order = leaning(matrix)[0].argsort(stable=True)
    middle = (len(names) + 1) // 2
    return names[order[:middle].sort().values], names[order[middle:].sort().values]


def cocluster(matrix: Float[Tensor, "rows columns"], size: int) -> tuple[Int[Tensor, "rows"], Int[Tensor, "columns"]]:
    """Which cluster each row and each column belongs to, none with more than `size` of either."""
    device = matrix.device
    todo = [(torch.arange(matrix.shape[0], device=device), torch.arange(matrix.shape[1], device=device))]
    rows, columns = (torch.zeros(n, dtype=torch.long, device=device) for n in matrix.shape)
    found = 0
    while todo:
        r, c = todo.pop()
        if max(len(r), len(c)) <= size:
            rows[r], columns[c] = found, found
            found += 1
            continue
        left, right = leaning(matrix[r][:, c]) if len(r) and len(c) else (torch.zeros(len(r)), torch.zeros(len(c)))
        by_row, by_column = left.argsort(stable=True), right.argsort(stable=True)
        a, b = (len(r) + 1) // 2, (len(c) + 1) // 2
        todo += [(r[by_row[a:]], c[by_column[b:]]), (r[by_row[:a]], c[by_column[:b]])]
    return rows, columns
