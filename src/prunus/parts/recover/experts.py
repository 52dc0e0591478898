"""Experts that went live on in those that stay."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.groups import Group, Member
from prunus.core.layer import Site
from prunus.core.part import Recovery


@dataclass(frozen=True)
class ClusterMean(Recovery):
    """Where a mixture is left with `at_most` experts, each becomes the mean of itself and those that went for which it
    is the nearest by the router's rows; so does its row (selective reconstruction: Lee et al. 2024, arXiv:2409.06211,
    section 4.3, which does so where few clusters are left, and else keeps experts as they are).

    Only for units that a router chooses; everything else stays. Cost: a copy of the dense model. Differs: what belongs
    together is worked out from what stays, not handed over by the clustering that chose it; the code leaves it out by
    default (0 clusters).
    """

    at_most: int = 3
    teacher: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.at_most < 1:
            raise SpecError(f"ClusterMean(at_most={self.at_most}): a mixture has at least 1 expert")

    @torch.no_grad()
    def __call__(self, site: Site) -> None:
        assert site.teacher is not None
        dense, now = dict(site.teacher.named_parameters()), dict(site.model.named_parameters())
        for group in site.groups:
            gates = {g.tensor for g in getattr(group, "gates", ())}
            rows = [m for m in group.members if m.param in gates and not m.buffer and dense[m.param].ndim > 1]
            outs = [m for m in group.with_role("out") if m.param in site.masks]
            if not rows or not outs:
                continue
            keep = group.views(outs, site.masks).any(-1)
            kept = keep.nonzero().squeeze(1)
            if bool(keep.all()) or len(kept) > self.at_most:
                continue
            row = group.views(rows, {m.param: dense[m.param].detach() for m in rows}).double()
            nearest = kept[torch.cdist(row, row[kept]).argmin(1)]
            nearest[kept] = kept  # also where two rows are equal
            for expert in kept.tolist():
                for one, tensors in shares(group, nearest == expert, expert):
                    mean = torch.stack([_slice(dense[m.param], m, u).double() for m, u in tensors]).mean(0)
                    _slice(now[one.param], one, expert).copy_(mean)


def shares(
    group: Group, cluster: Bool[Tensor, "experts"], expert: int
) -> Iterator[tuple[Member, list[tuple[Member, int]]]]:
    """The members in which an expert has weights, each with where the experts of its cluster have theirs."""
    experts = cluster.nonzero().squeeze(1).tolist()
    for member in group.members:
        if member.buffer or (member.index is not None and member.unit is None):
            continue
        if member.unit is None:
            yield member, [(member, u) for u in experts]
        elif member.unit == expert:
            # Experts in a list: the same place among the members of each.
            own = {u: [m for m in group.members if m.unit == u and not m.buffer] for u in experts}
            at = own[expert].index(member)
            yield member, [(own[u][at], u) for u in experts]


def _slice(tensor: Tensor, member: Member, unit: int) -> Tensor:
    """The view of what one unit has of a tensor."""
    return tensor.detach() if member.unit is not None else tensor.detach().select(member.dim or 0, unit)
