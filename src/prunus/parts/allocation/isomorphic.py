"""Ranking among groups of the same structure, and nowhere else."""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar, Literal

from prunus.core.groups import Group, Member
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.parts.allocation.ranking import GlobalRanking
from prunus.parts.allocation.selection import Rounding
from prunus.parts.allocation.together import Normalize, check_normalize


@dataclass(frozen=True)
class Isomorphic(Allocation):
    """The best units among all groups of one structure; every structure keeps the same share (Isomorphic Pruning, Fang
    et al. 2024, arXiv:2407.04616).

    Scores of attention heads, hidden neurons, residual channels and so on have different distributions, so that a
    ranking across all of them removes one sort and spares another. Here `kept(density, units of the class, rounding)`
    stay in each class of isomorphic groups, which are ranked together; ties go to the earlier unit, and what groups
    demand is met as in `GlobalRanking`. Where all groups are alike this is `GlobalRanking`, where no two are it is
    `Uniform`. Cost: that of `GlobalRanking`.

    Two groups are isomorphic where `form` is equal: the same kind of unit, a main weight with as many axes, and the
    same members as a multiset, each told by its role, the axis it is cut along, whether it is a buffer, and whether a
    unit owns one position of it or several. Names, sizes and the order of members do not matter.

    Differs: the paper compares the graphs of layers and their connections, with the layers' types on the nodes. Here
    there are no layer types: a depthwise convolution or a normalization is what its parameters are to the unit.

    Attributes:
        rounding: of the kept count of each class.
        normalize: what the scores of a group are divided by first, see `GlobalRanking`.
    """

    rounding: Rounding = "floor"
    normalize: Normalize = "none"
    scope: ClassVar[Literal["global", "local"]] = "global"

    def __post_init__(self) -> None:
        check_normalize(self.normalize)

    def __call__(self, scores: Scores, density: float, space: Space) -> Masks:
        ranking = GlobalRanking(self.rounding, self.normalize)
        masks: Masks = {}
        for names in classes(scores, space):
            masks |= ranking({n: scores[n] for n in names}, density, space)
        return {name: masks[name] for name in scores}


def classes(scores: Scores, space: Space) -> list[list[str]]:
    """The names of the scored groups, those of one form together, in the order in which they come."""
    found: dict[Hashable, list[str]] = {}
    for name in scores:
        found.setdefault(form(space[name]), []).append(name)
    return list(found.values())


def form(group: Group) -> Hashable:
    """What a group is apart from names, sizes and order; equal forms are isomorphic."""
    members = Counter(_part(m) for m in group.members)
    return group.kind, len(group.weight), group.parts > 1, frozenset(members.items())


def _part(member: Member) -> Hashable:
    several = member.index is not None and member.index.shape[1] > 1
    return member.role, member.dim, member.buffer, member.unit is not None, several
