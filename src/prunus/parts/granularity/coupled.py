"""Units that are coupled through the network's own structure: channels, neurons, attention heads."""

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import nn

from prunus.core.errors import SpecError
from prunus.core.groups import Group
from prunus.core.part import Granularity, Reduce


@dataclass(frozen=True)
class Coupled(Granularity):
    """Everything that can be removed: channels, neurons, heads, widths, with everything coupled to them.

    Needs an example input, with which the network is traced once (`prunus.graph.trace`). Axes that cannot be made
    smaller (inputs, outputs, operations without a rule) are not among the groups. Ranked globally, units of different
    kinds compete with each other.

    Attributes:
        reduce: how the scores of a unit's weights become one score.
        exclude: group or parameter names, with shell wildcards, that stay whole.
        at_least: units every group keeps.
        round_to: kept units are a multiple of this (and of what a kernel of the network needs). Several numbers, the
            coarsest first, are of positions (a head has many): each group keeps a multiple of the first of which it has
            two or more, else of the last.
        exact: leave whole what LayerNorm and GroupNorm average over. If False, such axes are pruned too; the norms
            then take the mean and variance of what is left, so the compact model is no longer equal to the masked one:
            `Result.compact` proves it equal but for that, and measures how far apart they are.
        kinds: the kinds of units that this granularity takes; all if empty.
    """

    reduce: Reduce = "sum"
    exclude: tuple[str, ...] = ()
    at_least: int = 1
    round_to: int | tuple[int, ...] = 1
    exact: bool = True
    kinds: ClassVar[tuple[str, ...]] = ()
    structure: ClassVar[Literal["unstructured", "semi-structured", "structured"]] = "structured"

    def __post_init__(self) -> None:
        steps = (self.round_to,) if isinstance(self.round_to, int) else tuple(self.round_to)
        if self.at_least < 1 or not steps or min(steps) < 1:
            name = type(self).__name__
            raise SpecError(f"{name}(at_least={self.at_least}, round_to={self.round_to}): both are at least 1")

    def __call__(self, model: nn.Module, example: tuple[Any, ...] | Mapping[str, Any] | None) -> tuple[Group, ...]:
        from prunus.graph import trace

        if example is None:
            raise SpecError("coupled units are found by running the model once: pass Task(example=...) or batches")
        return tuple(
            replace(g, at_least=max(g.at_least, self.at_least), multiple=math.lcm(g.multiple, _step(g, self.round_to)))
            for g in trace(model, example, exact=self.exact).groups
            if (not self.kinds or g.kind in self.kinds) and not self.excluded(g)
        )

    def reasons(self, model: nn.Module, example: tuple[Any, ...] | Mapping[str, Any] | None) -> dict[str, str]:
        """Why weights are in no group: what the graph says of them, or what these units are instead."""
        from prunus.graph import trace

        found = trace(model, example or (), exact=self.exact)
        others = [g for g in found.groups if self.kinds and g.kind not in self.kinds]
        left = {g.name: "excluded" for g in found.groups if self.excluded(g)}
        return found.frozen | left | {g.name: f"a unit of it is a {g.kind}" for g in others}

    def excluded(self, group: Group) -> bool:
        """Whether the user asked to leave this group, or any parameter that goes with it, alone."""
        names = [group.name, *(m.param for m in group.members)]
        return any(fnmatch.fnmatch(n, e) for n in names for e in self.exclude)


def _step(group: Group, round_to: int | tuple[int, ...]) -> int:
    """What the number of units that a group keeps is a multiple of."""
    if isinstance(round_to, int):
        return round_to
    wide = min((m.positions(group.units).shape[1] for m in group.with_role("out") if m.dim is not None), default=1)
    step = next((s for s in round_to if group.units * wide >= 2 * s), round_to[-1])
    return step // math.gcd(step, wide)
