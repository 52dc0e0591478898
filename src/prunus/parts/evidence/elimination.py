"""In which order units go if each time the one goes whose removal raises the loss least."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.counting import count
from prunus.core.evidence import Evidence, GroupTensors, Reads, Sources
from prunus.core.groups import Group
from prunus.parts.evidence.damage import counted, measured, on_device, present


class EliminationOrderEvidence(Evidence):
    """The place of every unit when units of all groups are removed one by one, each time the one without which the loss
    on the calibration batches is least, with those before it gone. The first has place 1; ties to the earlier unit.

    As many go as the event at hand removes (all but what groups have to keep, where there is no event); what then is
    left comes after them, in the order of the last round's losses. Pruned units have place 0. Undefined on single
    weights. Cost: one forward per batch, for every unit that is left in every round.
    """

    reads: ClassVar[Reads] = "labels"
    passes = "units forwards per batch for every unit that is removed"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        groups = counted(sources)
        places = {g.name: torch.zeros(g.units, dtype=torch.float64) for g in groups}
        left = {g.name: present(sources, g) for g in groups}
        losses: list[tuple[float, int, int]] = []
        with measured(sources) as loss, ExitStack() as gone:
            for place in range(1, asked(sources, groups) + 1):
                losses = []
                for i, group in enumerate(groups):
                    for u in left[group.name] if len(left[group.name]) > group.at_least else ():
                        with without(sources, group, u):
                            losses.append((loss(), i, u))
                if not losses:
                    break
                _, i, u = min(losses)
                places[groups[i].name][u] = place
                left[groups[i].name].remove(u)
                gone.enter_context(without(sources, groups[i], u))
        ranks = {(i, u): r for r, (_, i, u) in enumerate(sorted(losses))}
        for i, group in enumerate(groups):
            for u in left[group.name]:
                places[group.name][u] = 1 + sum(g.units for g in groups) + ranks.get((i, u), len(ranks))
        yield {g.name: on_device(sources, g, places[g.name]) for g in groups}


@contextmanager
def without(sources: Sources, group: Group, unit: int) -> Iterator[None]:
    """The model without a unit, which is zeroed as pruning would zero it, and put back bit by bit."""
    keep = torch.ones(group.units, dtype=torch.bool)
    keep[unit] = False
    own = (m for m in group.members if m.unit in (None, unit) and m.param in sources.parameters)
    zeroed = {m.param: sources.parameters[m.param] for m in own}
    saved = {name: p.detach().clone() for name, p in zeroed.items()}
    try:
        with torch.no_grad():
            for m in group.members:
                if m.param in zeroed and m.unit in (None, unit):
                    p = zeroed[m.param]
                    p.mul_(group.spread(m, keep.reshape(group.shape).to(p.device), p.shape))
        yield
    finally:
        with torch.no_grad():
            for name, p in zeroed.items():
                p.copy_(saved[name])


def asked(sources: Sources, groups: list[Group]) -> int:
    """How many units the event at hand removes of these groups: what the allocation leaves of them if all tie."""
    there = sum(len(present(sources, g)) for g in groups)
    if sources.choose is None:
        return there
    tie = {g.name: on_device(sources, g, torch.zeros(g.units)).squeeze(-1) for g in groups}
    masks = sources.choose(tie)
    return there - sum(count(masks[g.name]) for g in groups)


EliminationOrder = Annotated[Float[Tensor, "*units 1"], EliminationOrderEvidence()]
"""`[*units, 1]`: the place at which greedy backward elimination removes the unit; the last ones matter most."""
