"""How large a unit is in every input that it is read from, sample by sample."""

from collections.abc import Iterator
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import DataError
from prunus.core.evidence import Evidence, GroupTensors, Reads, Sources
from prunus.core.groups import Group
from prunus.graph.running import identity
from prunus.parts.evidence.activations import Uses, by_sample, names_of, read, readers, samples_of
from prunus.parts.evidence.capture import captured
from prunus.parts.evidence.gradients import NO_BATCH


class InputMomentsEvidence(Evidence):
    """Of every input that reads a unit and every sample, the mean over positions of the unit's size and of its square.

    The size is the l2 norm over the channels that the unit owns there (one for a neuron or a dimension of a stream, a
    head's for a head). What several weights are given alike (queries, keys and values) is one input. Rows that are no
    parts of samples (tokens sent to an expert) are left out. Undefined where nothing visible reads a unit, and where
    inputs come and go between batches. Cost: one forward per batch; the inputs of all readers of a batch are in memory
    at once.
    """

    roles = ("in",)
    reads: ClassVar[Reads] = "inputs"
    passes = "one forward per batch"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        found: dict[str, list[Tensor]] = {}
        empty = True
        for batch in sources.task.calibration():
            empty = False
            for uses in captured(sources, names_of(sources, self.roles), batches=[batch]):
                for group in sources.groups:
                    found.setdefault(group.name, []).append(moments(group, uses, samples_of(batch)))
        if empty:
            raise DataError(NO_BATCH)
        yield {n: torch.cat(f, 2) for n, f in found.items() if len({one.shape[1] for one in f}) == 1 and f[0].shape[1]}


def moments(group: Group, uses: Uses, samples: int | None) -> Float[Tensor, "units inputs samples 2"]:
    """Of one group and one batch; of no inputs where it is undefined."""
    seen: dict[tuple[object, ...], Tensor] = {}
    for member, use in readers(group, uses):
        key = (*identity(use.x), member.positions(group.units).shape)
        if key in seen:
            continue
        own = read(group, member, use, use.x).double()
        size = own.unflatten(2, (member.positions(group.units).shape[1], -1)).norm(dim=2)
        size = by_sample(size, samples)
        if samples is None or size.shape[1] == samples:
            seen[key] = torch.stack([size.mean(-1), size.square().mean(-1)], -1)
    if not seen:
        return torch.zeros(group.units, 0, samples or 1, 2, dtype=torch.float64)
    return torch.stack(list(seen.values()), 1)


InputMoments = Annotated[Float[Tensor, "units inputs samples 2"], InputMomentsEvidence()]
"""`[units, inputs, samples, 2]`: the mean over positions of a unit's size, and of its square, in float64."""
