"""Shapley values of the units of a layer: how much each lowers the loss, over the orders they could come in."""

from collections.abc import Iterator
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.evidence import Evidence, GroupTensors, Reads, Sources
from prunus.parts.evidence.damage import counted, measured, on_device, only, present
from prunus.parts.evidence.mode import averaged_over_ranks


class ShapleyEvidence(Evidence):
    """The Shapley value of every unit in the game whose players are the units of one group and whose value is minus the
    loss on the calibration batches with the other players' weights at zero; the rest of the network stays whole.

    Estimated from `permutations` (a setting of the asking part) random orders per group, drawn from the session's
    generator: in each, units go one after the other, and each is credited with the rise of the loss when it goes. The
    values of a group sum to the loss without any of its units minus the loss with all. Pruned units count as 0.
    Undefined on single weights. Cost: permutations * units forwards per batch and group.
    """

    reads: ClassVar[Reads] = "labels"
    random = True
    passes = "permutations * units forwards per batch and group"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        rounds = int(sources.settings.get("permutations", 5))
        found: dict[str, Tensor] = {}
        with measured(sources) as loss:
            whole = loss()
            for group in counted(sources):
                value = torch.zeros(group.units, dtype=torch.float64)
                units = present(sources, group)
                for _ in range(rounds):
                    keep = torch.zeros(group.units, dtype=torch.bool)
                    keep[units] = True
                    before = whole
                    for at in torch.randperm(len(units), generator=sources.generator).tolist():
                        keep[units[at]] = False
                        with only(sources, group, keep.reshape(group.shape)):
                            after = loss()
                        value[units[at]] += (after - before) / rounds
                        before = after
                found[group.name] = on_device(sources, group, value)
        yield averaged_over_ranks(found)


Shapley = Annotated[Float[Tensor, "*units 1"], ShapleyEvidence()]
"""`[*units, 1]`: the unit's Shapley value among those of its group, in units of the loss."""
