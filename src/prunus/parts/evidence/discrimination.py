"""Channels added one by one, by what the loss and the reader's own output call for most."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.evidence import Evidence, GroupTensors, Reads, Sources
from prunus.core.groups import Group, Member
from prunus.parts.evidence.capture import Use, captured, consumers
from prunus.parts.evidence.contributions import matrix
from prunus.parts.evidence.damage import counted, present
from prunus.parts.evidence.gradients import mean_gradient


@dataclass(frozen=True, eq=False)
class Reader:
    """A linear map that reads a group, with its dense weight and the mean of x x^T of its inputs."""

    member: Member
    use: Use
    dense: Tensor
    gram: Float[Tensor, "in in"]

    def pull(self, weight: Tensor) -> Tensor:
        """The gradient by the weight of the mean square difference of the outputs from the dense ones."""
        off = matrix(weight, self.use) - matrix(self.dense, self.use)
        g = 2 / len(off) * off @ self.gram
        turned = self.dense if self.use.in_axis == 1 else self.dense.T
        whole = g.reshape(turned.shape)
        return (whole if self.use.in_axis == 1 else whole.T).to(weight.dtype)


class AdditionOrderEvidence(Evidence):
    """How early a unit is added by discrimination-aware selection; the first one gets the highest number.

    The readers' weights start from zero on the group's units. Each step adds the unit with the largest Frobenius norm
    of dL/dw over its slices of the readers, L = mean square error of the readers' outputs + the asking part's `weight`
    times the task's loss; its slices become the dense ones, and those of all units added so far make `refit` steps down
    the gradient of L at `rate`. Other groups are whole. Undefined on groups that nothing visible reads. Cost: units
    (1 + refit) forwards and backwards over the batches per group, `[in, in]` in float64 per reader.
    """

    reads: ClassVar[Reads] = "labels"
    passes = "(1 + refit) forwards and backwards per batch and unit"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        found: dict[str, Tensor] = {}
        for group in counted(sources):
            if readers := readers_of(sources, group):
                found[group.name] = order(sources, group, readers)
        yield found


def order(sources: Sources, group: Group, readers: Mapping[str, Reader]) -> Float[Tensor, "*units 1"]:
    """Of one group; weights are put back, also after an exception."""
    weight, refit = float(sources.settings.get("weight", 1.0)), int(sources.settings.get("refit", 0))
    rate, live = float(sources.settings.get("rate", 0.0)), {n: sources.parameters[n] for n in readers}
    device = next(iter(live.values())).device
    place = torch.zeros(group.units, dtype=torch.float64, device=device)
    added = torch.zeros(group.units, dtype=torch.bool, device=device)
    waiting = torch.zeros_like(added)
    waiting[present(sources, group)] = True
    size = int(waiting.sum())

    def slices(name: str, units: Tensor) -> Tensor:
        return group.spread(readers[name].member, units.reshape(group.shape), live[name].shape)

    def gradient() -> dict[str, Tensor]:
        loss = mean_gradient(sources, live)
        return {n: weight * loss[n] + readers[n].pull(p.detach()) for n, p in live.items()}

    try:
        with torch.no_grad():
            for name, p in live.items():
                p.masked_fill_(slices(name, torch.ones_like(added)), 0.0)
        for step in range(size):
            g = gradient()
            called = torch.stack([group.view(readers[n].member, t).double().square().sum(-1) for n, t in g.items()])
            best = int(called.sum(0).reshape(-1).masked_fill(~waiting, -1.0).argmax())
            place[best], waiting[best], added[best] = size - step, False, True
            with torch.no_grad():
                for name, p in live.items():
                    new = slices(name, torch.arange(group.units, device=device) == best)
                    p.copy_(torch.where(new, readers[name].dense, p))
            for _ in range(refit):
                g = gradient()
                with torch.no_grad():
                    for name, p in live.items():
                        p.sub_(rate * g[name].masked_fill(~slices(name, added), 0.0))
    finally:
        with torch.no_grad():
            for name, p in live.items():
                p.copy_(readers[name].dense)
    return place.reshape(*group.shape, 1)


def readers_of(sources: Sources, group: Group) -> dict[str, Reader]:
    """What reads a group, by parameter name, with statistics of the calibration batches."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    seen: dict[str, tuple[Member, Use]] = {}
    for uses in captured(sources, {m.param for m in group.with_role("in")}):
        for member, use in consumers(group, uses):
            x = use.columns()[0].double()
            sums[use.name] = sums[use.name] + x.T @ x if use.name in sums else x.T @ x
            counts[use.name] = counts.get(use.name, 0) + len(x)
            seen.setdefault(use.name, (member, use))
    return {
        n: Reader(member, use, sources.parameters[n].detach().clone(), sums[n] / counts[n])
        for n, (member, use) in seen.items()
    }


AdditionOrder = Annotated[Float[Tensor, "*units 1"], AdditionOrderEvidence()]
"""`[*units, 1]`: how early discrimination-aware selection adds the unit; the first one is highest."""
