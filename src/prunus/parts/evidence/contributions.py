"""What units contribute to those that read them.

A reader is a linear map or convolution, y = sum over units j of z_j + the rest, with z_j = w_j x_j: the unit's channels
times the columns of the weight that read them. With gram matrices of the inputs and of the weight, products of
contributions over all positions and all output channels are exact: nothing is sampled.
"""

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunus.core.evidence import Evidence, GroupTensors, Sources
from prunus.core.groups import Group, Member
from prunus.parts.evidence.capture import Use, by_unit, captured, consumers

ROWS = 1 << 14


class ReaderEvidence(Evidence):
    """What is seen where a group's units are read; undefined on groups that nothing visible reads."""

    reads: ClassVar[Literal["inputs"]] = "inputs"
    passes = "one forward per batch"

    def seen(self, sources: Sources) -> Iterator[tuple[Group, Member, Use]]:
        """Every use of every reader, batch after batch."""
        names = {m.param for g in sources.groups for m in g.with_role("in")}
        for uses in captured(sources, names):
            for group in sources.groups:
                for member, use in consumers(group, uses):
                    yield group, member, use


class ContributionsEvidence(ReaderEvidence):
    """<z_j, z_k>: products of contributions, averaged over samples and positions, summed over outputs and readers.

    1_T' C 1_T is then the squared error of the readers' outputs when the units T are removed. Float64. Cost: one
    forward per batch, `[in, in]` twice per reader (kernel positions counted), the patches of one convolution at a time.
    """

    def left(self, use: Use) -> Float[Tensor, "samples in"]:
        """The inputs on the left side of the product."""
        return use.columns()[0]

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        sums: dict[tuple[str, str], Tensor] = {}
        counts: dict[tuple[str, str], int] = {}
        where: dict[tuple[str, str], tuple[Group, Member, Use]] = {}
        for group, member, use in self.seen(sources):
            at = owned_columns(group, member, use).reshape(-1)
            pairs = zip(self.left(use).split(ROWS), use.columns()[0].split(ROWS), strict=True)
            products = torch.stack([a[:, at].double().T @ b[:, at].double() for a, b in pairs]).sum(0)
            key = group.name, f"{member.param}[{group.members.index(member)}]"
            sums[key] = sums[key] + products if key in sums else products
            counts[key] = counts.get(key, 0) + use.columns().shape[1]
            where[key] = group, member, use
        found: dict[str, Tensor] = {}
        for key, (group, member, use) in where.items():
            w = matrix(sources.parameters[member.param], use)[:, owned_columns(group, member, use).reshape(-1)]
            both = (sums[key] / counts[key] * (w.T @ w)).reshape(
                group.units, -1, group.units, w.shape[1] // group.units
            )
            cross = both.sum((1, 3))
            found[group.name] = found[group.name] + cross if group.name in found else cross
        yield found


class ConstantContributionsEvidence(ContributionsEvidence):
    """<o_j, z_k>, where o_j is what unit j would contribute if it were 1 everywhere (padding stays 0).

    Row j of it, summed over k, is the gradient of half the squared output by a constant that is added to unit j.
    """

    def left(self, use: Use) -> Float[Tensor, "samples in"]:
        """Patches of ones."""
        return replace(use, x=torch.ones_like(use.x)).columns()[0]


class FeatureGramEvidence(ReaderEvidence):
    """<x_j, x_k>: products of the units' feature maps, as vectors of all samples and positions, by their readers.

    Float64. Cost: one forward per batch.
    """

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        sums: dict[str, Tensor] = {}
        for group, member, use in self.seen(sources):
            x = by_unit(group, member, use.by_channel(use.x)).flatten(1).double()
            sums[group.name] = sums.get(group.name, 0) + x @ x.T
        yield sums


def owned_columns(group: Group, member: Member, use: Use) -> Int[Tensor, "units k"]:
    """Which columns of the reader's matrix `[out, in*kernel]` multiply each unit."""
    kernel = prod(use.kernel)
    positions = member.positions(group.units).to(use.x.device)
    return (positions.unsqueeze(-1) * kernel + torch.arange(kernel, device=use.x.device)).reshape(group.units, -1)


def matrix(weight: Tensor, use: Use) -> Float[Tensor, "out in"]:
    """The reader's weight as the matrix that multiplies its columns."""
    turned = weight if use.in_axis == 1 else weight.T
    return turned.detach().double().reshape(turned.shape[0], -1)


Contributions = Annotated[Float[Tensor, "units units"], ContributionsEvidence()]
"""`[units, units]`: products of what units contribute to their readers' outputs."""

ConstantContributions = Annotated[Float[Tensor, "units units"], ConstantContributionsEvidence()]
"""`[units, units]`: products of what unit j would contribute if it were 1 with what unit k does."""

FeatureGram = Annotated[Float[Tensor, "units units"], FeatureGramEvidence()]
"""`[units, units]`: products of the units' feature maps."""
