"""What the loss becomes when one layer alone is pruned: the sensitivity scan."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from prunus.core.errors import DataError
from prunus.core.evidence import Evidence, GroupTensors, Sources
from prunus.core.groups import Group
from prunus.parts.evidence.gradients import NO_BATCH
from prunus.parts.evidence.mode import evidence_mode


class ScanEvidence(Evidence):
    """`[1 + densities]`: the mean loss of the calibration batches as the model is, then with this group alone pruned by
    its scores to each of the asking part's `grid` of densities, everything else as it is. Float64.

    The best units stay, and always one. Cost: a forward of every batch for each group and density.
    """

    reads: ClassVar[Literal["labels"]] = "labels"
    passes = "one forward per batch, group and density"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        assert sources.scores is not None
        grid = [float(d) for d in sources.settings["grid"]]
        dense = mean_loss(sources)
        losses: dict[str, Tensor] = {}
        for group in sources.groups:
            found = [dense]
            for density in grid:
                with without_units(group, best(sources.scores[group.name], density), sources.parameters):
                    found.append(mean_loss(sources))
            losses[group.name] = torch.tensor(found, dtype=torch.float64)
        yield losses


def best(scores: Float[Tensor, "*units"], density: float) -> Bool[Tensor, "*units"]:
    """The best units at a density, at least one; ties to the earlier, -inf never."""
    flat = scores.reshape(-1)
    order = flat.argsort(descending=True, stable=True)[: max(1, round(density * len(flat)))]
    keep = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    keep[order] = True
    return (keep & (flat > -torch.inf)).reshape(scores.shape)


@contextmanager
def without_units(group: Group, keep: Bool[Tensor, "*units"], parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """The group's other units zeroed while inside, with all their slices; put back bit by bit, whatever happens."""
    members = [m for m in group.members if not m.buffer]
    saved = {m.param: parameters[m.param].detach().clone() for m in members}
    try:
        with torch.no_grad():
            for m in members:
                p = parameters[m.param]
                p.masked_fill_(~group.spread(m, keep, p.shape), 0.0)
        yield
    finally:
        with torch.no_grad():
            for name, values in saved.items():
                parameters[name].copy_(values)


def mean_loss(sources: Sources) -> float:
    """The mean of the task's loss over the calibration batches, in evaluation mode."""
    total, count = 0.0, 0
    for batch in sources.task.calibration():
        with evidence_mode(sources.model, {}, sources.generator), torch.no_grad():
            total += float(sources.task.loss_of(sources.model, batch))
        count += 1
    if not count:
        raise DataError(NO_BATCH)
    return total / count
