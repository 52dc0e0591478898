"""N:M patterns in another order of the input channels, in which more of the score stays."""

from dataclasses import dataclass
from typing import Any

import torch

from prunus.core.arrangement import arranged
from prunus.core.errors import SpecError
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.parts.allocation.ranking import NofM
from prunus.parts.allocation.wrapped import Around


@dataclass(frozen=True)
class Permuted(Around):
    """The n best of every m inputs that stand together once the inputs of a layer are put into a better order (channel
    permutation of RIA: Zhang et al. 2024, Plug-and-Play, ICLR, section 3.3).

    Inputs are dealt out to the blocks by the sum of their scores, to and fro; then, for each of the m places in turn,
    the inputs that stand there are given to the blocks anew so that most of the score stays, a linear assignment.
    Each layer has an order of its own. No weight is moved and no output changes for it: the masks lie on the weights
    where they are, and are n:m only in that order (a kernel has to gather the inputs; the official code evaluates it
    so, too). `prunus.parts.prepare.Arranged` moves channels for good, where their makers can be moved along.
    Layers whose rows are no multiple of m stay dense. Cost: out * in^2 / m comparisons and m assignments of in / m to
    in / m per layer. Fails: `MissingExtraError` without scipy; `SpecError` around anything but `NofM` along rows.
    """

    of: Allocation = NofM(2, 4)

    def __post_init__(self) -> None:
        if not isinstance(self.of, NofM) or self.of.along != "row":
            raise SpecError(f"{self}: what is permuted is a pattern of inputs, NofM(n, m)")

    def __call__(self, scores: Scores, density: float, space: Space, **given: Any) -> Masks:
        masks = self.of(scores, density, space, **given)
        assert isinstance(self.of, NofM)
        for name, s in scores.items():
            if density < 1.0 and self.of.fits(tuple(s.shape), space[name].weight):
                order = arranged(s.double(), self.of.n, self.of.m).to(s.device)
                inside = self.of({name: s[:, order]}, density, space)[name]
                masks[name] = torch.empty_like(inside).index_copy_(1, order, inside)
        return masks
