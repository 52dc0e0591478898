"""Evidence from activations: what the readers of a unit see of it, and what the loss says to that.

A unit acts where it is read: at the inputs of the convolutions and linear maps that sum over it, after its own
normalization and nonlinearity. Units that nothing visible reads (see `prunus.parts.evidence.capture`) have no such
evidence, and their groups are left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import DataError
from prunus.core.evidence import Evidence, GroupTensors, Reads, Sources
from prunus.core.groups import Group, Member, Role
from prunus.parts.evidence.capture import Use, by_unit, captured
from prunus.parts.evidence.gradients import NO_BATCH

Uses = Mapping[str, Sequence[Use]]


def readers(group: Group, uses: Uses) -> list[tuple[Member, Use]]:
    """The uses that read a group's units, in the order of the run; grouped convolutions included."""
    order = {name: i for i, name in enumerate(uses)}
    members = [m for m in group.with_role("in") if m.param in uses and m.unit is None and m.tile is None]
    members.sort(key=lambda m: order[m.param])
    return [(m, use) for m in members for use in uses[m.param] if m.dim == use.in_axis]


def read(group: Group, member: Member, use: Use, tensor: Tensor) -> Float[Tensor, "units rows values"]:
    """What belongs to each unit in a reader's input (or its gradient): its channels at all positions.

    Of a grouped convolution a unit owns the channel at the same place in every group.
    """
    channels = use.by_channel(tensor)
    if use.groups > 1:
        rows, count, positions = channels.shape
        apart = channels.reshape(rows, use.groups, count // use.groups, positions)
        channels = apart.transpose(1, 2).reshape(rows, count // use.groups, -1)
    return by_unit(group, member, channels)


def by_sample(tensor: Float[Tensor, "units rows values"], samples: int | None) -> Float[Tensor, "units batch joined"]:
    """Rows that are parts of samples (windows, tokens in one long list, sample by sample) joined to whole samples."""
    units, rows, values = tensor.shape
    if samples is None or rows == samples or rows % samples:
        return tensor
    return tensor.reshape(units, samples, rows // samples * values)


def samples_of(batch: Any) -> int | None:
    """How many samples a batch has: the length of its first tensor; None where it holds none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else None
    inside = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, Sequence) else ()
    for part in inside if not isinstance(batch, str) else ():
        if (found := samples_of(part)) is not None:
            return found
    return None


def names_of(sources: Sources, roles: tuple[Role, ...]) -> list[str]:
    """The parameters with one of these roles in some group, in the order of the groups."""
    return list(dict.fromkeys(m.param for g in sources.groups for m in g.with_role(*roles)))


@dataclass(frozen=True)
class ActivationEvidence(Evidence):
    """What the first reader of each unit sees, batch by batch.

    A reader's first axis is taken for the samples. Rows that are parts of samples (windows, flattened tokens) are
    joined to samples where their number is a multiple of the batch's. Cost: one forward per batch; the inputs of all
    readers are in memory at once.
    """

    roles: ClassVar[tuple[Role, ...]] = ("in",)
    reads: ClassVar[Reads] = "inputs"
    per_batch: ClassVar[bool] = True
    passes: ClassVar[str] = "one forward per batch"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        names = names_of(sources, self.roles)
        empty = True
        for batch in sources.task.calibration():
            empty = False
            ways = {"gradients": self.reads == "labels", "outputs": self.outputs(sources)}
            for uses in captured(sources, names, **ways, batches=[batch]):
                found = {g.name: self.told(g, uses, samples_of(batch)) for g in sources.groups}
                yield {name: value for name, value in found.items() if value is not None}
        if empty:
            raise DataError(NO_BATCH)

    def outputs(self, sources: Sources) -> bool:
        """Whether what maps put out is asked for too."""
        return False

    def told(self, group: Group, uses: Uses, samples: int | None) -> Tensor | None:
        """The evidence of one group from all that was seen; None where it is undefined."""
        return self.of(group, readers(group, uses), samples)

    def of(self, group: Group, seen: list[tuple[Member, Use]], samples: int | None) -> Tensor | None:
        """The evidence of one group from its readers; None where it is undefined."""
        if not seen:
            return None
        member, use = seen[0]
        return by_sample(read(group, member, use, use.x), samples)


@dataclass(frozen=True)
class ActivationGradEvidence(ActivationEvidence):
    """What the first reader of each unit sees, beside the gradient of the batch's loss with respect to it.

    The gradient is that through this reader alone. It is zero where the loss does not depend on it. The loss is the
    task's, usually a mean over the batch: the gradient of a sample's own loss is that times the batch size. Cost: one
    forward and backward per batch.
    """

    roles: ClassVar[tuple[Role, ...]] = ("out", "in", "scale")
    reads: ClassVar[Reads] = "labels"
    passes: ClassVar[str] = "one forward and backward per batch"

    def of(self, group: Group, seen: list[tuple[Member, Use]], samples: int | None) -> Tensor | None:
        if not seen:
            return None
        member, use = seen[0]
        gx = torch.zeros_like(use.x) if use.gx is None else use.gx
        return torch.stack([by_sample(read(group, member, use, t), samples) for t in (use.x, gx)], -1)


@dataclass(frozen=True)
class GateGradEvidence(ActivationGradEvidence):
    """The gradient of every sample's loss with respect to a gate (a factor of 1) on each unit, in one backward.

    A gate on a unit scales what all of its readers see, so its gradient is the sum over readers and positions of
    x dL/dx; one on a residual branch scales what its last map puts out, so there it is that of y dL/dy. The loss is
    taken as a mean over the batch: L = 1/N sum of L_n, so dL_n/dgate is N times what the batch's loss gives for sample
    n. A group is left out where one of its readers (of branches, one of the last maps, with its bias) is not seen in
    the batch, or where the rows of its readers are no samples. Cost: one forward and backward per batch; of branches,
    what all maps put out is in memory.
    """

    def outputs(self, sources: Sources) -> bool:
        return any(getattr(g, "ends", ()) for g in sources.groups)

    def told(self, group: Group, uses: Uses, samples: int | None) -> Tensor | None:
        ends = getattr(group, "ends", ())
        if not ends or not all(ends):
            return super().told(group, uses, samples)
        last = [
            [use for n in names for use in uses.get(n, ()) if {n, use.bias} - {None} == set(names)] for names in ends
        ]
        if any(len(found) != 1 or found[0].y is None or found[0].gy is None for found in last):
            return None
        each = [
            by_sample((_wide(u.y) * _wide(u.gy)).flatten(1)[None], samples).sum(-1)
            for (u,) in last
            if u.y is not None and u.gy is not None
        ]
        if any(one.shape != each[0].shape for one in each):
            return None
        return torch.cat(each) * each[0].shape[1]

    def of(self, group: Group, seen: list[tuple[Member, Use]], samples: int | None) -> Tensor | None:
        if not seen or {m.param for m in group.with_role("in")} != {m.param for m, _ in seen}:
            return None
        each = []
        for member, use in seen:
            gx = torch.zeros_like(use.x) if use.gx is None else use.gx
            each.append(by_sample(read(group, member, use, _wide(use.x) * _wide(gx)), samples).sum(-1))
        if any(one.shape != each[0].shape for one in each):
            return None
        return torch.stack(each).sum(0) * each[0].shape[1]


@dataclass(frozen=True)
class FeatureMapEvidence(ActivationEvidence):
    """Maps that the first reader of each unit sees, where that is a two-dimensional convolution.

    A unit of several channels has that many maps per sample. Undefined where the first reader is anything else (a
    classifier after pooling). Cost: one forward per batch.
    """

    def of(self, group: Group, seen: list[tuple[Member, Use]], samples: int | None) -> Tensor | None:
        if not seen or len(seen[0][1].kernel) != 2:
            return None
        member, use = seen[0]
        height, width = use.x.shape[-2:]
        return read(group, member, use, use.x).reshape(group.units, -1, height, width)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


Activation = Annotated[Float[Tensor, "units batch values"], ActivationEvidence()]
"""`[units, batch, values]`: what the first reader of each unit sees, at all positions; scores are averaged over
batches.
"""

ActivationGrad = Annotated[Float[Tensor, "units batch values 2"], ActivationGradEvidence()]
"""`[units, batch, values, 2]`: what the first reader of each unit sees, and the gradient of the batch's loss with
respect to it: `a, g = pair.unbind(-1)`.
"""

GateGrad = Annotated[Float[Tensor, "units batch"], GateGradEvidence()]
"""`[units, batch]`: dL_n/dgate of every sample n, for a gate on each unit."""

FeatureMap = Annotated[Float[Tensor, "units maps height width"], FeatureMapEvidence()]
"""`[units, maps, height, width]`: feature maps as the next convolution sees them, one per sample (and channel)."""
