"""The loss without a unit, and the loss with a few units only: units are zeroed in earnest and the model is run."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.errors import DataError
from prunus.core.evidence import Evidence, GroupTensors, Sources
from prunus.core.groups import Group
from prunus.parts.evidence.gradients import NO_BATCH
from prunus.parts.evidence.mode import evidence_mode


@contextmanager
def only(sources: Sources, group: Group, keep: Bool[Tensor, "*units"], scale: float = 1.0) -> Iterator[None]:
    """The model with nothing but the units `keep` of a group, the others zeroed as pruning would zero them.

    `scale` multiplies what reads the units. Weights are put back bit by bit, also after an exception.
    """
    members = [m for m in group.members if m.param in sources.parameters]
    before = {m.param: sources.parameters[m.param].detach().clone() for m in members}
    try:
        with torch.no_grad():
            for m in members:
                p = sources.parameters[m.param]
                p.mul_(group.spread(m, keep.to(p.device), p.shape))
            for name in {m.param for m in members if m.role == "in"} if scale != 1.0 else ():
                sources.parameters[name].mul_(scale)
        yield
    finally:
        with torch.no_grad():
            for name, saved in before.items():
                sources.parameters[name].copy_(saved)


@contextmanager
def measured(sources: Sources) -> Iterator[Callable[[], float]]:
    """Inside, a function that runs the calibration batches in evaluation mode and returns their mean loss."""
    batches: Sequence[Any] = list(sources.task.calibration())
    if not batches:
        raise DataError(NO_BATCH)
    with evidence_mode(sources.model, {}, sources.generator), torch.no_grad():
        yield lambda: sum(float(sources.task.loss_of(sources.model, b)) for b in batches) / len(batches)


class LeaveOneOutEvidence(Evidence):
    """Loss without the unit minus loss with it, on the calibration batches; pruned units count as 0.

    Undefined on single weights. Cost: one forward per batch for every unit of every group, one after the other.
    """

    reads: ClassVar[Literal["labels"]] = "labels"
    passes = "one forward per batch and unit"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        found: dict[str, Tensor] = {}
        with measured(sources) as loss:
            whole = loss()
            for group in counted(sources):
                rise = torch.zeros(group.units, dtype=torch.float64)
                for u in present(sources, group):
                    keep = torch.ones(group.units, dtype=torch.bool)
                    keep[u] = False
                    with only(sources, group, keep.reshape(group.shape)):
                        rise[u] = loss() - whole
                found[group.name] = on_device(sources, group, rise)
        yield found


class ForwardOrderEvidence(Evidence):
    """How early a unit is taken up greedily: each step adds the one with which the loss is least; the first gets the
    highest number, those that are never taken up 0.

    While a group is empty but for the chosen units, the others are whole, and the readers of the chosen n of N units
    are scaled by N / n where the asking part has `average=True`. At most `candidates` units are tried at a step, drawn
    from the session's generator (None: all). Undefined on single weights. Cost: units^2 / 2 forwards per
    batch and group, or candidates times units.
    """

    reads: ClassVar[Literal["labels"]] = "labels"
    passes = "units^2 / 2 forwards per batch and group"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        with measured(sources) as loss:
            found = {g.name: on_device(sources, g, self.order(sources, g, loss)) for g in counted(sources)}
        yield found

    def order(self, sources: Sources, group: Group, loss: Callable[[], float]) -> Float[Tensor, "n"]:
        """Of one group."""
        most, average = sources.settings.get("candidates"), bool(sources.settings.get("average", True))
        order, waiting = torch.zeros(group.units, dtype=torch.float64), present(sources, group)
        keep, size = torch.zeros(group.units, dtype=torch.bool), len(waiting)
        for taken in range(1, size + 1):
            tried: list[tuple[float, int]] = []
            for u in drawn(waiting, most, sources.generator):
                keep[u] = True
                with only(sources, group, keep.reshape(group.shape), size / taken if average else 1.0):
                    tried.append((loss(), u))
                keep[u] = False
            best = min(tried)[1]
            keep[best], order[best] = True, size + 1 - taken
            waiting.remove(best)
        return order


def counted(sources: Sources) -> list[Group]:
    """The groups of units that are few enough to be tried one by one: all but those of single weights."""
    return [g for g in sources.groups if not g.elementwise]


def present(sources: Sources, group: Group) -> list[int]:
    """The units that are not pruned."""
    mask = sources.masks.get(group.name)
    every: list[int] = list(range(group.units))
    return every if mask is None else [u for u in every if mask.reshape(-1)[u]]


def drawn(units: list[int], most: int | None, generator: torch.Generator) -> list[int]:
    """At most so many of the units, in their order."""
    if most is None or len(units) <= most:
        return units
    picked = torch.randperm(len(units), generator=generator)[:most]
    return [units[i] for i in sorted(picked.tolist())]


def on_device(sources: Sources, group: Group, values: Float[Tensor, "n"]) -> Float[Tensor, "*units 1"]:
    """Laid out by unit, where the group's weights are."""
    return values.reshape(*group.shape, 1).to(sources.parameters[group.members[0].param].device)


LeaveOneOut = Annotated[Float[Tensor, "*units 1"], LeaveOneOutEvidence()]
"""`[*units, 1]`: how much the loss rises when the unit alone is removed."""

ForwardOrder = Annotated[Float[Tensor, "*units 1"], ForwardOrderEvidence()]
"""`[*units, 1]`: how early greedy forward selection takes the unit up; the first one is highest."""
