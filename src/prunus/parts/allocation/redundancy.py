"""Pruning where filters resemble each other most, one at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.parts.allocation.constraints import respected
from prunus.parts.allocation.dealing import bounds
from prunus.parts.allocation.selection import Rounding, kept
from prunus.parts.evidence.weights import ParameterEvidence

Weights = Annotated[Mapping[str, Tensor], ParameterEvidence()]


@dataclass(frozen=True)
class StructuralRedundancy(Allocation):
    """One filter after another from the layer that is most redundant by then: the one with the smallest score (Wang et
    al. 2021, SRR-GR, arXiv:2104.03438).

    The filters of a layer, at unit length, are the nodes of a graph; an edge joins two whose distance is at most
    `gamma` sqrt(entries of a filter). redundancy = filters left / (components * (1 - cover) + covering number *
    `cover`), where the components are those of the graph (its quotient space) and the 1-covering number is how many
    nodes it takes so that every other one is next to one of them, found greedily (the exact number is NP-hard; the
    greedy one is at most 1 + ln(filters) times it). Equally redundant layers lose the filter of the one with the
    largest share left, the earlier on a tie. Exactly `kept(density, all units, rounding)` stay. Single weights have no
    neighbours. Cost: distances of all pairs of filters, and a greedy cover for every filter removed.
    Fails: `SpecError` for single weights. Differs: there is no official code; `gamma` and its scale are those of a
    public reproduction.
    """

    gamma: float = 0.023
    cover: float = 0.65
    rounding: Rounding = "floor"
    scope: ClassVar[Literal["global", "local"]] = "global"

    def __post_init__(self) -> None:
        if self.gamma < 0 or not 0.0 <= self.cover <= 1.0:
            raise SpecError(f"{self}: gamma is a distance, cover a share in [0, 1]")

    def __call__(self, scores: Scores, density: float, space: Space, *, weights: Weights) -> Masks:
        if any(s.ndim != 1 for s in scores.values()):
            raise SpecError("StructuralRedundancy compares whole filters; use another allocation for single weights")
        least, most = bounds(scores, space)
        total = kept(density, sum(s.numel() for s in scores.values()), self.rounding)
        # Alive filters, best first: the last one goes next.
        order = {n: s.argsort(descending=True, stable=True)[: most[n]].tolist() for n, s in scores.items()}
        near = {n: neighbours(weights[n], self.gamma) for n in scores}
        measure = {n: self.redundancy(near[n][np.ix_(o, o)]) for n, o in order.items()}
        left = sum(most.values())
        while left > total and (free := [n for n in order if len(order[n]) > least[n]]):
            name = max(free, key=lambda n: (measure[n], len(order[n]) / scores[n].numel()))
            order[name].pop()
            measure[name] = self.redundancy(near[name][np.ix_(order[name], order[name])])
            left -= 1
        masks: Masks = {}
        for name, s in scores.items():
            mask = torch.zeros(s.shape, dtype=torch.bool)
            mask[order[name]] = True
            masks[name] = mask.to(s.device)
        return respected(scores, masks, space)

    def redundancy(self, near: Bool[np.ndarray, "n n"]) -> float:
        """Filters per independent one: 1 where no two resemble each other."""
        if not len(near):
            return 0.0
        return len(near) / ((1 - self.cover) * components(near) + self.cover * covering(near))


def neighbours(weights: Tensor, gamma: float) -> Bool[np.ndarray, "n n"]:
    """Which filters resemble each other, each of them itself."""
    flat = weights.reshape(len(weights), -1).double().cpu()
    unit = flat / torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    far = torch.cdist(unit[None], unit[None], compute_mode="donot_use_mm_for_euclid_dist")[0]
    near: np.ndarray = (far <= gamma * flat.shape[1] ** 0.5).numpy() | np.eye(len(flat), dtype=bool)
    return near


def components(near: Bool[np.ndarray, "n n"]) -> int:
    """How many connected parts the graph has."""
    left, count = np.ones(len(near), dtype=bool), 0
    while left.any():
        front = np.zeros(len(near), dtype=bool)
        front[left.argmax()] = True
        while front.any():
            left &= ~front
            front = near[front].any(0) & left
        count += 1
    return count


def covering(near: Bool[np.ndarray, "n n"]) -> int:
    """How many nodes it takes greedily until each is one of them or next to one."""
    bare, count = np.ones(len(near), dtype=bool), 0
    while bare.any():
        bare &= ~near[(near & bare).sum(1).argmax()]
        count += 1
    return count
