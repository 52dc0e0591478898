"""Evidence from the weights on the other side of a unit: those that read it."""

from collections.abc import Iterator
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.evidence import Evidence, GroupTensors, Sources
from prunus.core.groups import Group, Member
from prunus.parts.evidence.weights import ParameterEvidence


class OutgoingWeightEvidence(ParameterEvidence):
    """The weights that read each unit: its slices of the next layers, side by side. Undefined where nothing reads."""

    roles = ("in",)


class CoupledWeightEvidence(ParameterEvidence):
    """Every weight that goes with a unit: those that make it, those that read it, its normalization scales."""

    roles = ("out", "in", "scale")


class ShiftEvidence(ParameterEvidence):
    """The shifts of the normalizations in a group; undefined on groups without one."""

    roles = ("shift",)


class OutgoingKernelEvidence(Evidence):
    """The kernels that read each unit, one for every output of every reader.

    Kernels of readers that are smaller than the largest one end in zeros. A linear map's kernels are single numbers; a
    unit that owns several channels has that many times more. Undefined where nothing reads a unit. Cost: one copy of
    the readers' weights.
    """

    passes = "none"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        found: dict[str, Tensor] = {}
        for group in sources.groups:
            readers = [m for m in group.with_role("in") if m.dim is not None and m.unit is None and m.tile is None]
            if readers and group.movable:
                sets = [kernels(group, m, sources.parameters[m.param].detach()) for m in readers]
                width = max(one.shape[-1] for one in sets)
                padded = [torch.nn.functional.pad(one, (0, width - one.shape[-1])) for one in sets]
                found[group.name] = torch.cat(padded, dim=1)
        yield found


def kernels(group: Group, member: Member, weight: Tensor) -> Float[Tensor, "units outputs taps"]:
    """A reader's weights by unit: the other of the first two axes counts kernels, what is left is one kernel."""
    dim = member.dim
    assert dim is not None
    rows = weight.movedim(dim, 0)[member.positions(group.units).to(weight.device)]
    return rows.reshape(group.units, rows.shape[1] * rows.shape[2], -1)


Shift = Annotated[Float[Tensor, "*units shifts"], ShiftEvidence()]
"""`[*units, shifts]`: the normalization shifts (beta) of each unit."""

OutgoingWeight = Annotated[Float[Tensor, "units read"], OutgoingWeightEvidence()]
"""`[units, read]`: the weights of the next layers that read each unit."""

OutgoingKernels = Annotated[Float[Tensor, "units outputs taps"], OutgoingKernelEvidence()]
"""`[units, outputs, taps]`: the kernels of the next layers that read each unit."""

CoupledWeight = Annotated[Float[Tensor, "*units k"], CoupledWeightEvidence()]
"""`[*units, k]`: all weights that go with each unit, on both sides, and its normalization scales."""
