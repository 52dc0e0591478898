"""Masks in which every row and every column keeps as many weights as any other: regular bipartite graphs."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.counting import count
from prunus.core.errors import SpecError
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.parts.allocation.constraints import affordable, best_of
from prunus.parts.allocation.dealing import rounded_to_total
from prunus.parts.allocation.selection import Rounding, kept, top_k


@dataclass(frozen=True)
class Regular(Allocation):
    """The same density in every layer, and within a layer as many weights in every row and in every column as in any
    other, at most one more: a regular bipartite graph between outputs and inputs, an expander where it is random
    (Prabhu et al. 2018, arXiv:1711.08757; Ramanujan graphs in pruning at initialization: Hoang et al. 2023, ICLR).

    Exactly r per row and c per column where the layer's count is a multiple of both sizes. Scores decide which of these
    graphs it is: two rows trade the columns that only one of them has, each taking those that it scores higher; `turns`
    times all rows are paired anew (until every two have met, in small layers). So random scores make a random regular
    graph. The total is exactly `kept(density, all units, rounding)`. Rows are outputs, columns inputs times kernel
    positions. Units of groups (not single weights) are ranked within their layer. Where units were pruned before in
    another way, the best ones left fill up what is missing, and rows are only nearly equal. Cost: `turns` sorts of the
    layer. Differs: the papers sample regular or Ramanujan graphs; here scores may choose among them, and no spectral
    bound is checked (random regular graphs come close to it with high probability).
    """

    turns: int = 16
    rounding: Rounding = "floor"

    def __post_init__(self) -> None:
        if self.turns < 0:
            raise SpecError(f"Regular(turns={self.turns}): how often rows are paired, at least 0 times")

    def __call__(self, scores: Scores, density: float, space: Space) -> Masks:
        units = {n: space[n].units for n in scores}
        total = sum(units.values())
        counts = affordable(
            lambda k: rounded_to_total({n: k / total * u for n, u in units.items()}, units, k),
            space,
            kept(density, total, self.rounding),
        )
        return {
            n: self.regular(s, counts[n]) if s.ndim == 2 else best_of(space[n], s, counts[n]) for n, s in scores.items()
        }

    def regular(self, scores: Float[Tensor, "rows columns"], k: int) -> Bool[Tensor, "rows columns"]:
        """k entries, as equally many in every row and in every column as there can be."""
        there = scores > -torch.inf
        if count(there) <= k:
            return there
        worth = scores.double().clamp(min=torch.finfo(torch.float64).min / 4)
        mask = balanced(worth, k)
        for first, second in pairings(len(mask), self.turns, mask.device):
            trade_(mask, worth, first, second)
        mask &= there
        if (missing := k - count(mask)) > 0:
            mask |= top_k([scores.double().masked_fill(mask, -torch.inf)], missing)[0]
        return mask


def balanced(scores: Float[Tensor, "rows columns"], k: int) -> Bool[Tensor, "rows columns"]:
    """Row by row, the columns that have the fewest so far, of equals the best; row counts differ by at most one."""
    rows, columns = scores.shape
    share, extra = divmod(k, rows)
    longer = top_k([scores.mean(1)], extra)[0].tolist()
    order = scores.argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros(rows, columns, dtype=torch.bool, device=scores.device)
    used = torch.zeros(columns, dtype=torch.long, device=scores.device)
    for row in range(rows):
        best = order[row]
        chosen = best[used[best].argsort(stable=True)[: share + longer[row]]]
        mask[row, chosen] = True
        used[chosen] += 1
    return mask


def pairings(rows: int, turns: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Disjoint pairs of rows, other ones every time (the circle method of tournaments, whose turns are all pairs)."""
    even = rows + rows % 2
    around = torch.arange(1, even, device=device)
    for turn in range(0, even - 1, max(1, (even - 1) // max(1, turns)))[:turns]:
        seats = torch.cat([around.new_zeros(1), around.roll(turn)])
        first, second = seats[: even // 2], seats[even // 2 :].flip(0)
        real = (first < rows) & (second < rows)
        yield first[real], second[real]


def trade_(
    mask: Bool[Tensor, "rows columns"],
    scores: Float[Tensor, "rows columns"],
    first: Tensor,
    second: Tensor,
) -> None:
    """Pairs of rows deal the columns that only one of the two has anew, as many to each as before, in place."""
    a, b = mask[first], mask[second]
    only = a ^ b
    gain = (scores[first] - scores[second]).masked_fill(~only, -torch.inf)
    places = gain.argsort(dim=1, descending=True, stable=True)
    take = torch.arange(mask.shape[1], device=mask.device).expand_as(places) < (a & only).sum(1, keepdim=True)
    dealt = torch.zeros_like(only).scatter_(1, places, take)
    mask[first] = torch.where(only, dealt, a)
    mask[second] = torch.where(only, ~dealt, b)
