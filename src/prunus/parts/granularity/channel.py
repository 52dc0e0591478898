"""Whole channels of convolutions and neurons of linear layers, with everything coupled to them."""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import nn

from prunus.core.errors import SpecError
from prunus.core.groups import Group
from prunus.core.part import Granularity, Reduce


@dataclass(frozen=True)
class Channel(Granularity):
    """Output channels of convolutions and neurons of linear layers, coupled through the network's own structure.

    Needs an example input, with which the network is traced once. Axes that cannot be made smaller (inputs, outputs,
    operations without a rule) are not among the groups.

    Attributes:
        reduce: how the scores of a unit's weights become one score.
        exclude: group or parameter names, with shell wildcards, that stay whole.
        at_least: units every group keeps.
        round_to: kept units are a multiple of this.
    """

    reduce: Reduce = "sum"
    exclude: tuple[str, ...] = ()
    at_least: int = 1
    round_to: int = 1
    structure: ClassVar[Literal["unstructured", "semi-structured", "structured"]] = "structured"

    def __post_init__(self) -> None:
        if self.at_least < 1 or self.round_to < 1:
            raise SpecError(f"Channel(at_least={self.at_least}, round_to={self.round_to}): both are at least 1")

    def __call__(self, model: nn.Module, example: tuple[Any, ...] | Mapping[str, Any] | None) -> tuple[Group, ...]:
        from prunus.graph import trace

        if example is None:
            raise SpecError("channels are found by running the model once: pass Task(example=...) or batches")
        return tuple(
            replace(g, at_least=max(g.at_least, self.at_least), multiple=self.round_to)
            for g in trace(model, example).groups
            if not self.excluded(g)
        )

    def excluded(self, group: Group) -> bool:
        """Whether the user asked to leave this group, or any parameter that goes with it, alone."""
        names = [group.name, *(m.param for m in group.members)]
        return any(fnmatch.fnmatch(n, e) for n in names for e in self.exclude)
