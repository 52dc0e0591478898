"""Rearranging a mask: units are exchanged within a layer, because losing two of them is not losing each alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.evidence import Evidence, GroupTensors, Sources
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.parts.allocation.ranking import GlobalRanking
from prunus.parts.allocation.wrapped import Around
from prunus.parts.evidence.activations import GateGradEvidence


class GateGradsEvidence(GateGradEvidence):
    """`GateGrad` of all calibration batches side by side."""

    per_batch = False

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        batches = list(super().collect(sources))
        everywhere = [name for name in batches[0] if all(name in b for b in batches)]
        yield {name: torch.cat([b[name] for b in batches], -1) for name in everywhere}


@dataclass(frozen=True)
class Rearranged(Around):
    """As many units per layer as the allocation inside keeps, but exchanged one by one so that the sum over samples of
    (sum of dL_n/dm_u over removed units u)^2 falls: the layer's block of the Fisher information instead of its
    diagonal (Kwon et al. 2022, arXiv:2204.09656, section 4.2).

    Each kept unit, from the least score up, joins the removed ones, and whichever of them is then best put back is. Of
    equals the earlier one. Layers whose units form parts, or whose gates are not seen, stay as they are. Cost: one
    forward and backward per batch, kept * removed * samples per layer.
    """

    of: Allocation = GlobalRanking()

    def asks(self) -> Mapping[str, Evidence]:
        return {**self.of.asks(), "gates": GateGradsEvidence()}

    def __call__(
        self, scores: Scores, density: float, space: Space, *, gates: Mapping[str, Tensor], **given: Any
    ) -> Masks:
        masks = self.of(scores, density, space, **given)
        for name, mask in masks.items():
            if name in gates and space[name].parts == 1:
                masks[name] = rearranged(scores[name], mask, gates[name].to(mask.device).double())
        return masks


def rearranged(
    scores: Float[Tensor, "units"], mask: Bool[Tensor, "units"], gates: Float[Tensor, "units samples"]
) -> Bool[Tensor, "units"]:
    """The mask after the exchanges; units of score -inf were removed before and stay so."""
    there = mask.clone()
    movable = scores > -torch.inf
    order = scores.argsort(stable=True)
    for unit in order[there[order]].tolist():
        there[unit] = False
        lost = gates[~there].sum(0)
        without = (lost - gates).square().sum(1).masked_fill(there | ~movable, torch.inf)
        back = int(without.argmin())
        there[back] = True
    return there
