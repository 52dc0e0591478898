"""How much the inputs of a unit's readers vary over the calibration data."""

from collections.abc import Iterator
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import DataError
from prunus.core.evidence import Evidence, GroupTensors, Reads, Sources
from prunus.parts.evidence.activations import names_of
from prunus.parts.evidence.capture import captured
from prunus.parts.evidence.gradients import NO_BATCH
from prunus.parts.evidence.mode import averaged_over_ranks


class ReaderVarianceEvidence(Evidence):
    """For every weight that reads a unit, the variance of the input channel that it multiplies.

    Over all samples and positions of all batches, in float64, n in the denominator; a kernel's taps share that of
    their channel (what padding adds is not counted). Undefined where a reader is not seen. Cost: one forward per batch.
    """

    roles = ("in",)
    reads: ClassVar[Reads] = "inputs"
    passes = "one forward per batch"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        sums: dict[str, list[Tensor]] = {}
        empty = True
        for uses in captured(sources, names_of(sources, self.roles)):
            empty = False
            for name, seen in uses.items():
                for use in seen:
                    x = use.by_channel(use.x).double()
                    if use.groups > 1:  # a column of the weight reads one channel of every group
                        x = x.unflatten(1, (use.groups, -1)).transpose(1, 2).flatten(2)
                    count = torch.tensor(float(x.shape[0] * x.shape[2]))
                    one = [count, x.sum((0, 2)), x.square().sum((0, 2))]
                    sums[name] = [a + b for a, b in zip(sums[name], one, strict=True)] if name in sums else one
        if empty:
            raise DataError(NO_BATCH)
        spread = averaged_over_ranks(
            {n: (square / count - (total / count).square()).clamp(min=0) for n, (count, total, square) in sums.items()}
        )
        laid: dict[str, Tensor] = {}
        for name, v in spread.items():
            weight = sources.parameters[name]
            axis = next(m.dim for g in sources.groups for m in g.with_role("in") if m.param == name)
            lying = [1] * weight.ndim
            lying[axis or 0] = -1
            laid[name] = v.reshape(lying).expand(weight.shape)
        whole = [g.name for g in sources.groups if all(m.param in laid for m in g.with_role("in"))]
        found = self.by_group(sources, laid)
        yield {n: v for n, v in found.items() if n in whole}


ReaderVariance = Annotated[Float[Tensor, "units k"], ReaderVarianceEvidence()]
"""`[units, k]`: beside every weight that reads the unit, the variance of what it multiplies."""


class ChannelFluctuationEvidence(ReaderVarianceEvidence):
    """Of every channel that a unit owns, Var(x) ||w||^2 over what its readers make of it, summed over readers.

    Undefined where a reader is not seen, or owns another number of channels. Cost: one forward per batch.
    """

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        spread = next(super().collect(sources))
        found: dict[str, Tensor] = {}
        for group in sources.groups:
            members = group.with_role("in")
            counts = [m.positions(group.units).shape[1] for m in members if m.dim is not None]
            if group.name in spread and len(set(counts)) == 1 and len(counts) == len(members):
                weights = [group.view(m, sources.parameters[m.param].detach()).double() for m in members]
                parts = spread[group.name].split([w.shape[-1] for w in weights], -1)
                each = [(w.square() * v).unflatten(-1, (counts[0], -1)) for w, v in zip(weights, parts, strict=True)]
                found[group.name] = torch.cat(each, -1).sum(-1)
        yield found


ChannelFluctuation = Annotated[Float[Tensor, "units channels"], ChannelFluctuationEvidence()]
"""`[units, channels]`: by how much the readers' outputs move when a channel of the unit is replaced by its mean."""
