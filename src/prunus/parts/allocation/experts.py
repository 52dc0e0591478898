"""Experts that are alike form clusters, of which one expert each stays."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.groups import Group
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.parts.allocation.constraints import best_of
from prunus.parts.allocation.selection import Rounding, kept
from prunus.parts.evidence.routed import RouterRowEvidence
from prunus.parts.evidence.weights import ParameterEvidence


@dataclass(frozen=True)
class ExpertClusters(Allocation):
    """One expert of each cluster of alike ones: the first stage of STUN (Lee et al. 2024, arXiv:2409.06211, section 4.2
    and algorithm 1).

    The distance of two experts is that of their rows of the router, over the norm of its matrix. Pairs are taken from
    the closest on; a pair joins the clusters it lies in, unless two experts of these are `threshold` or farther apart.
    Of a cluster the expert stays whose weights are nearest to the cluster's mean. The threshold is the least one that
    leaves no more clusters than asked: one for the network, so that mixtures whose experts are alike lose more
    (`within="network"`, the paper), or one for each mixture, which then all keep the share asked (`"layer"`).
    Where less than that is left (ties, minima, parts), the experts with the highest scores fill up.

    Cost: experts^2 and a few sorts per threshold tried, about log2 of the number of pairs; one copy of the experts'
    weights. Fails: `SpecError` on units that are no experts. Differs: the code compares an expert with the other
    cluster, and not all pairs of both, and its binary search may end without meeting the count.
    """

    within: Literal["network", "layer"] = "network"
    rounding: Rounding = "floor"

    def __post_init__(self) -> None:
        if self.within not in ("network", "layer"):
            raise SpecError(f"ExpertClusters(within={self.within!r}): 'network' or 'layer'")

    @property
    def scope(self) -> Literal["global", "local"]:  # type: ignore[override]
        """Whether mixtures compete."""
        return "global" if self.within == "network" else "local"

    def asks(self) -> dict[str, Any]:
        return {"row": RouterRowEvidence(), "w": ParameterEvidence()}

    def __call__(self, scores: Scores, density: float, space: Space, **given: Any) -> Masks:
        names = list(scores)
        if lacking := [n for n in names if n not in given["row"]]:
            raise SpecError(f"ExpertClusters is for experts with a router: {lacking[0]} has none")
        mixtures = {n: Mixture(space[n], scores[n], given["row"][n], given["w"][n]) for n in names}
        parts = [names] if self.within == "network" else [[n] for n in names]
        asked = [kept(density, sum(mixtures[n].units for n in own), self.rounding) for own in parts]
        found = (among({n: mixtures[n] for n in own}, k) for own, k in zip(parts, asked, strict=True))
        return {n: m for masks in found for n, m in masks.items()}


class Mixture:
    """The experts of one router.

    Attributes:
        apart: `[experts, experts]`, distances; infinite for pairs that are never joined.
    """

    least: ClassVar[int] = 1

    def __init__(self, group: Group, scores: Tensor, row: Tensor, w: Tensor) -> None:
        self.group, self.units, self.w = group, group.units, w
        self.scores = scores.reshape(-1).double()
        rows = row.double()
        self.apart = torch.cdist(rows, rows) / rows.norm().clamp(min=1e-300)
        gone = self.scores == -torch.inf
        part = torch.arange(self.units, device=rows.device) // (self.units // group.parts)
        never = gone | gone.unsqueeze(1) | (part != part.unsqueeze(1))
        self.apart.masked_fill_(never | torch.eye(self.units, dtype=torch.bool, device=rows.device), torch.inf)
        upper = torch.triu_indices(self.units, self.units, 1, device=rows.device)
        order = self.apart[upper[0], upper[1]].argsort(stable=True)
        self.pairs = upper[:, order].T.tolist()

    def clusters(self, threshold: float) -> list[list[int]]:
        """The clusters of experts that are closer to each other than the threshold, and at least as many as stay."""
        own = {i: [i] for i in range(self.units) if self.scores[i] > -torch.inf}
        apart, left = self.apart.tolist(), len(own)
        for i, j in self.pairs:
            if left <= max(self.least, self.group.at_least) or not apart[i][j] < threshold:
                break
            if own[i] is own[j] or any(not apart[a][b] < threshold for a in own[i] for b in own[j]):
                continue
            both = own[i] + own[j]
            own |= dict.fromkeys(both, both)
            left -= 1
        return list({id(c): c for c in own.values()}.values())

    def ranked(self, clusters: list[list[int]]) -> Float[Tensor, "experts"]:
        """A number for every expert: those that stand for a cluster first (at least `units`), then by their scores."""
        place = self.scores.argsort(descending=True, stable=True).argsort().double()
        ranks = (self.units - 1 - place).masked_fill(self.scores == -torch.inf, -torch.inf)
        for cluster in clusters:
            w = self.w[cluster].double()
            ranks[cluster[int((w - w.mean(0)).norm(dim=1).argmin())]] += self.units
        return ranks


def among(mixtures: dict[str, Mixture], asked: int) -> Masks:
    """The masks of mixtures that share a threshold, with so many experts left in all."""
    tried = torch.cat([m.apart[m.apart.isfinite()] for m in mixtures.values()]).unique().tolist()
    # The first threshold joins nothing; past the last distance everything that may be joined is.
    edges = [0.0, *tried, torch.inf]
    low, high = 0, len(edges) - 1
    while low < high:
        middle = (low + high) // 2
        if sum(len(m.clusters(edges[middle])) for m in mixtures.values()) <= asked:
            high = middle
        else:
            low = middle + 1
    ranks = {n: m.ranked(m.clusters(edges[high])) for n, m in mixtures.items()}
    counts = {n: int((r >= m.units).sum()) for (n, r), m in zip(ranks.items(), mixtures.values(), strict=True)}
    for name in more(ranks, {n: m.scores for n, m in mixtures.items()}, asked - sum(counts.values())):
        counts[name] += 1
    return {n: best_of(m.group, ranks[n], counts[n]) for n, m in mixtures.items()}


def more(ranks: Scores, scores: Scores, number: int) -> Iterator[str]:
    """The mixtures to which the best experts belong that stand for no cluster, so many of them."""
    rest = [
        (-float(scores[n][i]), n, i)
        for n, r in ranks.items()
        for i in range(len(r))
        if -torch.inf < float(r[i]) < len(r)
    ]
    yield from (name for _, name, _ in sorted(rest)[: max(0, number)])
