"""How much of what a neuron adds up comes through one weight or one input channel: empirical sensitivities."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.evidence import Evidence, GroupTensors, Sources
from prunus.parts.evidence.capture import Use, captured, consumers

PIECE = 1 << 22


class RelativeWeightEvidence(Evidence):
    """`[rows, columns, 1]`: max over inputs of w_ij a_j / sum_k w_ik a_k, the terms of one sign among themselves
    (Baykal et al. 2019, SiPP, arXiv:1910.05422). In [0, 1]; of single weights only.

    Positive and negative weights, and the positive and the negative part of the inputs, are four sums of their own;
    a weight's sensitivity is the largest of its two. Every position of a convolution is an input. Where a weight is
    used several times, the largest counts. Undefined where no use of the weight is seen (`captured`).
    Cost: one forward per batch, and as many multiplications as the layer's own product, in memory-sized pieces.
    """

    reads: ClassVar[Literal["inputs"]] = "inputs"
    passes = "one forward per batch and a comparison for every product"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        names = [g.members[0].param for g in sources.groups if g.elementwise]
        largest: dict[str, Tensor] = {}
        for uses in captured(sources, names):
            for name, many in uses.items():
                for use in many:
                    found = sensitivity(use, sources.parameters[name])
                    largest[name] = torch.maximum(largest[name], found) if name in largest else found
        named = {g.members[0].param: g for g in sources.groups if g.elementwise}
        yield {named[n].name: s.reshape(*named[n].shape, 1) for n, s in largest.items()}


class RelativeChannelEvidence(Evidence):
    """`[units, 1]`: the largest of these sensitivities among all weights that read the unit (Liebenwein et al. 2020,
    PFP, arXiv:1911.07412).

    Undefined for groups whose readers are not seen. Cost: as for single weights.
    """

    reads: ClassVar[Literal["inputs"]] = "inputs"
    passes = "one forward per batch and a comparison for every product"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        names = dict.fromkeys(m.param for g in sources.groups for m in g.with_role("in"))
        largest: dict[str, Tensor] = {}
        for uses in captured(sources, names):
            channels = {id(u): by_input(u, sources) for n in uses for u in uses[n] if u.groups == 1}
            for group in sources.groups:
                for member, use in consumers(group, uses):
                    index = member.positions(group.units).to(use.x.device)
                    found = channels[id(use)][index].amax(1, keepdim=True)
                    old = largest.get(group.name)
                    largest[group.name] = found if old is None else torch.maximum(old, found)
        yield largest


class ReaderPatchesEvidence(Evidence):
    """`[1]`: log(8 (positions + 1) kernel size): how many sums an error bound must hold for at once, of the reader with
    the most; the failure probability apart. Cost: a forward of the first calibration batch.
    """

    reads: ClassVar[Literal["inputs"]] = "inputs"
    passes = "one forward of one batch"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        names = dict.fromkeys(m.param for g in sources.groups for m in g.with_role("in"))
        uses = next(iter(captured(sources, names)))
        found: dict[str, Tensor] = {}
        for group in sources.groups:
            sizes = [
                8.0 * (u.columns().shape[1] / len(u.x) + 1) * max(1, _kernel(u)) for _, u in consumers(group, uses)
            ]
            if sizes:
                found[group.name] = torch.tensor([max(sizes)], dtype=torch.float64).log()
        yield found


def by_input(use: Use, sources: Sources) -> Float[Tensor, "channels"]:
    """The largest sensitivity of any weight that reads a channel."""
    weight = sources.parameters[use.name]
    rows = sensitivity(use, weight)
    return rows.amax(0) if use.conv is None else rows.reshape(len(rows), weight.shape[1], -1).amax((0, 2))


def sensitivity(use: Use, weight: Tensor) -> Float[Tensor, "out in"]:
    """`[out, in*kernel]`: see `RelativeWeightEvidence`; of a weight that is stored `[in, out]` the other way round."""
    matrix = weight.detach() if use.in_axis == 1 else weight.detach().T
    rows = matrix.reshape(use.groups, -1, matrix[0].numel())
    found = torch.stack([_largest_share(x, w) for x, w in zip(use.columns(), rows, strict=True)])
    return found.reshape(matrix.shape[0], -1)


def _largest_share(x: Float[Tensor, "samples in"], w: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    largest = torch.zeros_like(w)
    step = max(1, PIECE // max(1, x.numel()))
    for a in (x.clamp(min=0), (-x).clamp(min=0)):
        for side in (w.clamp(min=0), (-w).clamp(min=0)):
            whole = a @ side.T
            for i in range(0, len(w), step):
                rows = slice(i, i + step)
                parts = a.unsqueeze(1) / whole[:, rows, None].masked_fill(whole[:, rows, None] <= 0, torch.inf)
                largest[rows] = torch.maximum(largest[rows], parts.amax(0) * side[rows])
    return largest


def _kernel(use: Use) -> int:
    size = 1
    for n in use.kernel:
        size *= n
    return size


RelativeWeight = Annotated[Float[Tensor, "*units 1"], RelativeWeightEvidence()]
"""`[rows, columns, 1]`: the largest share that a weight has in a sum of one sign of its neuron, in [0, 1]."""

RelativeChannel = Annotated[Float[Tensor, "*units 1"], RelativeChannelEvidence()]
"""`[units, 1]`: the largest share that a unit has in a sum of one sign of a neuron that reads it, in [0, 1]."""
