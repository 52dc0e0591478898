"""Units of several kinds that lie over each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from prunus.core.errors import SpecError, StructureError
from prunus.core.groups import Group
from prunus.core.part import Granularity, Reduce
from prunus.parts.granularity.branch import Branch
from prunus.parts.granularity.coupled import Coupled


@dataclass(frozen=True)
class Joint(Granularity):
    """The units of several granularities together: whole attention and feed-forward branches beside the heads, neurons
    and dimensions within them (CoFi: Xia, Zhong & Chen 2022, ACL, arXiv:2204.00408, section 3.1).

    A weight stays where all units that it is a part of do. Those that find nothing in a model are passed over. Cost:
    that of all of them. Fails: `StructureError` where none finds any, `SpecError` where two find the same groups.

    Attributes:
        of: granularities of structures.
        reduce: how the scores of a unit's weights become one score.
        apart: groups that share parameters with those of a granularity before are left out: with `(Head(), Branch())`,
            branches without heads, the feed-forward layers.
    """

    of: tuple[Granularity, ...] = (Coupled(), Branch())
    reduce: Reduce = "sum"
    apart: bool = False
    structure: ClassVar[Literal["unstructured", "semi-structured", "structured"]] = "structured"

    def __post_init__(self) -> None:
        if not self.of or any(g.structure != self.structure for g in self.of):
            raise SpecError(f"{self}: one granularity of structures, or several")

    def __call__(self, model: nn.Module, example: tuple[Any, ...] | Mapping[str, Any] | None) -> tuple[Group, ...]:
        found: dict[str, Group] = {}
        problem: StructureError | None = None
        for part in self.of:
            try:
                groups = part(model, example)
            except StructureError as error:
                problem = error
                continue
            there = {m.param for g in found.values() for m in g.members} if self.apart else set[str]()
            groups = tuple(g for g in groups if there.isdisjoint(m.param for m in g.members))
            if twice := [g.name for g in groups if g.name in found]:
                raise SpecError(f"{self} finds {twice[0]} twice: exclude it in one of them")
            found |= {g.name: g for g in groups}
        if not found and problem is not None:
            raise problem
        return tuple(found.values())
