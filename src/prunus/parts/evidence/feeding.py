"""What a weight is fed: the scale of the normalization before it, read off the network's structure."""

from collections.abc import Iterator, Mapping
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.evidence import Evidence, GroupTensors, Sources
from prunus.core.groups import Group, Member


class FeedingScaleEvidence(Evidence):
    """The scale (gamma) of the normalization that an entry's input channel comes from, laid out like the weight itself.

    Which one that is, is said by the units that are coupled through the network (`prunus.graph.trace`): a unit's
    normalizations and the weights that read it. Of several normalizations of one unit (residual sums) the last one
    counts that the network declares before the weight, or the first one where all come after it. Undefined on weights
    of which some input channel has no normalization (the first layer, layers after another linear one).
    Cost: one traced run of the example; none of its values is used.
    """

    passes = "one run of the example"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        from prunus.graph import trace

        call = sources.task.example_inputs()
        if call is None:
            raise SpecError("which norm feeds a weight is read off one run: pass Task(example=...) or batches")
        fed = feeding(trace(sources.model, call[1] or call[0], probe=False).groups, sources.parameters)
        views = self.by_group(sources, fed)
        whole = {g.name for g in sources.groups if all(m.param in fed for m in g.with_role(*self.roles))}
        yield {name: view for name, view in views.items() if name in whole}


def feeding(groups: tuple[Group, ...], parameters: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "..."]]:
    """Weight name -> a tensor of its shape with the scale of each entry's input channel."""
    place = {name: i for i, name in enumerate(parameters)}
    found: dict[str, Tensor] = {}
    axes: dict[str, int] = {}
    for group in groups:
        scales = [m for m in group.with_role("scale") if m.param in parameters]
        for reader in group.with_role("in"):
            if not scales or reader.dim is None or reader.param not in parameters:
                continue
            norm = max(scales, key=lambda m: (place[m.param] < place[reader.param], _near(m, reader, place)))
            axis = found.setdefault(
                reader.param, torch.full((parameters[reader.param].shape[reader.dim],), torch.nan, dtype=torch.float64)
            )
            axes[reader.param] = reader.dim
            gamma = group.view(norm, parameters[norm.param].detach()).double().mean(-1).cpu()
            axis[reader.positions(group.units)] = gamma.unsqueeze(1)
    whole = {name: axis for name, axis in found.items() if not axis.isnan().any()}
    return {name: _laid_out(axis, axes[name], parameters[name]) for name, axis in whole.items()}


def _near(norm: Member, reader: Member, place: Mapping[str, int]) -> int:
    return -abs(place[reader.param] - place[norm.param])


def _laid_out(axis: Tensor, dim: int, weight: Tensor) -> Tensor:
    lying = [1] * weight.ndim
    lying[dim] = -1
    return axis.to(weight).reshape(lying).expand(weight.shape)


FeedingScale = Annotated[Float[Tensor, "*units k"], FeedingScaleEvidence()]
"""`[*units, k]`: gamma of the normalization before each entry's input channel."""
