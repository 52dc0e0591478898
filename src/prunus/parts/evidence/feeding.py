"""What a weight is fed: the scale of the normalization before it, read off the network's structure."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.evidence import Evidence, GroupTensors, RunningEvidence, Sources
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
        fed = feeding(traced(sources), sources.parameters)
        views = self.by_group(sources, fed)
        whole = {g.name for g in sources.groups if all(m.param in fed for m in g.with_role(*self.roles))}
        yield {name: view for name, view in views.items() if name in whole}


def traced(sources: Sources) -> tuple[Group, ...]:
    """The units that are coupled through the network, found by one run of the example."""
    from prunus.graph import trace

    call = sources.task.example_inputs()
    if call is None:
        raise SpecError("which norm feeds a weight is read off one run: pass Task(example=...) or batches")
    return trace(sources.model, call[1] or call[0], probe=False).groups


def places(
    groups: tuple[Group, ...], parameters: Mapping[str, Tensor]
) -> dict[str, dict[str, Int[Tensor, "channels_and_one"]]]:
    """Weight name -> norm's parameter name -> the weight's input axis, and where each of its channels' scale lies in
    the norm (-1: in another norm). Of a unit with several scales per channel the first counts.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for group, norm, reader in feeders(groups, parameters):
        assert reader.dim is not None
        size = parameters[reader.param].shape[reader.dim]
        fresh = torch.cat([torch.tensor([reader.dim]), torch.full((size,), -1)])
        at = found.setdefault(reader.param, {}).setdefault(norm.param, fresh)
        into, scale = reader.positions(group.units), norm.positions(group.units)
        at[1:][into] = scale if scale.shape == into.shape else scale[:, :1].expand(into.shape)
    whole = {n for n, norms in found.items() if bool(torch.stack([a[1:] >= 0 for a in norms.values()]).any(0).all())}
    return {n: {k: a.to(parameters[n].device) for k, a in norms.items()} for n, norms in found.items() if n in whole}


def feeders(groups: tuple[Group, ...], parameters: Mapping[str, Tensor]) -> Iterator[tuple[Group, Member, Member]]:
    """Every weight that reads the units of a group, and the normalization that counts for it."""
    place = {name: i for i, name in enumerate(parameters)}
    for group in groups:
        scales = [m for m in group.with_role("scale") if m.param in parameters]
        for reader in group.with_role("in"):
            if scales and reader.dim is not None and reader.param in parameters:
                norm = max(scales, key=lambda m: (place[m.param] < place[reader.param], _near(m, reader, place)))
                yield group, norm, reader


def feeding(groups: tuple[Group, ...], parameters: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "..."]]:
    """Weight name -> a tensor of its shape with the scale of each entry's input channel."""
    found: dict[str, Tensor] = {}
    axes: dict[str, int] = {}
    for group, norm, reader in feeders(groups, parameters):
        assert reader.dim is not None
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


class FedScaleEvidence(RunningEvidence):
    """The same scales, live: a penalty's gradient reaches them. Where they lie is found before the first step.

    Undefined outside of training. Cost: one traced run of the example, once; one gather per weight.
    """

    reads = "nothing"
    key: ClassVar[str] = "fed"
    passes = "one run of the example"

    def renew(self, store: dict[str, Tensor], sources: Sources) -> None:
        if not store:
            found = places(traced(sources), sources.parameters)
            store |= {f"{reader}|{norm}": at for reader, norms in found.items() for norm, at in norms.items()}

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield self.by_group(sources, sources.parameters)

    def by_group(self, sources: Sources, tensors: Mapping[str, Tensor]) -> GroupTensors:
        laid: dict[str, Tensor] = {}
        for key, at in sources.running.get(self.key, {}).items():
            reader, norm = key.split("|")
            if reader in tensors and norm in tensors:
                dim, where = int(at[0]), at[1:]
                axis = (tensors[norm][where.clamp(min=0)] * (where >= 0)).to(tensors[reader])
                one = _laid_out(axis, dim, tensors[reader])
                laid[reader] = laid[reader] + one if reader in laid else one
        return super().by_group(sources, laid)


FeedingScale = Annotated[Float[Tensor, "*units k"], FeedingScaleEvidence()]
"""`[*units, k]`: gamma of the normalization before each entry's input channel."""

FedScale = Annotated[Float[Tensor, "*units k"], FedScaleEvidence()]
"""`[*units, k]`: the same, for penalties: live, and found before the first step."""
