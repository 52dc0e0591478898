"""Allocations that spoil another one's choice: what is left of a method without what is said to matter in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from prunus.core.counting import count, full
from prunus.core.errors import SpecError
from prunus.core.evidence import Evidence
from prunus.core.part import Allocation, Criterion, Masks, Scores, Space
from prunus.parts.allocation.constraints import best_of
from prunus.parts.allocation.ranking import GlobalRanking
from prunus.parts.allocation.wrapped import Around
from prunus.parts.evidence.noise import FinalNoiseEvidence

PREFIX = "like_"


@dataclass(frozen=True)
class Inverted(Around):
    """The allocation inside, told the scores upside down: what a method would remove first stays (the inversion of
    Frankle et al. 2021, arXiv:2009.08576).

    s becomes s_min + s_max - s over the whole network, which turns every order around and keeps scores that are not
    negative so; pruned units stay pruned. Cost: one copy of the scores. Differs: Synaptic-Flow's code takes 1/s, the
    same order for positive scores, but not for those of GraSP.
    """

    of: Allocation = GlobalRanking()

    def __call__(self, scores: Scores, density: float, space: Space, **given: Any) -> Masks:
        finite = [s[s.isfinite()] for s in scores.values()]
        there = [f for f in finite if f.numel()]
        if not there:
            return self.of(scores, density, space, **given)
        both = min(float(f.min()) for f in there) + max(float(f.max()) for f in there)
        turned = {n: torch.where(s.isfinite(), both - s.double(), s.double()) for n, s in scores.items()}
        return self.of(turned, density, space, **given)


@dataclass(frozen=True)
class Shuffled(Around):
    """The allocation inside decides how many stay in every layer, chance decides which (the shuffling of Frankle et al.
    2021, arXiv:2009.08576; Su et al. 2020, arXiv:2009.11094).

    Counts are kept per layer, and per block where the allocation inside is a pattern. Equal parts and multiples that
    groups demand are met. `when="every"`: at every event, among the units that are left. `when="last"`: at the last
    event only and among all units, those pruned before included; for schedules whose last event gives back the weights
    that earlier ones zeroed (rewinding, `Returning`). For one event they are the same. Cost: one random number per
    unit. Differs: the shuffling of Synaptic-Flow's code has no effect.
    """

    of: Allocation = GlobalRanking()
    when: Literal["every", "last"] = "every"

    def __post_init__(self) -> None:
        if self.when not in ("every", "last"):
            raise SpecError(f"Shuffled(when={self.when!r}): 'every' event or the 'last' one")

    def asks(self) -> Mapping[str, Evidence]:
        return {**self.of.asks(), "noise": FinalNoiseEvidence()}

    def __call__(
        self, scores: Scores, density: float, space: Space, *, noise: Mapping[str, Tensor], **given: Any
    ) -> Masks:
        drawn = {n: noise[n].squeeze(-1).to(s.device) for n, s in scores.items() if n in noise}
        if self.when == "every":
            drawn = {n: u.masked_fill(~(scores[n] > -torch.inf), -torch.inf) for n, u in drawn.items()}
        masks = self.of(scores, density, space, **given)
        if self.pattern and drawn:
            return self.of(drawn, density, space, **given)  # the same counts in every block
        return {n: m if full(m) or n not in drawn else best_of(space[n], drawn[n], count(m)) for n, m in masks.items()}


@dataclass(frozen=True)
class SharesOf(Around):
    """Every layer keeps as many units as it would if the units were scored by another criterion, but which ones is left
    to the scores: the layer densities of SNIP or GraSP for random masks (Liu et al. 2022, arXiv:2202.02643).

    The other criterion's scores are summed over a unit and go through the allocation inside; evidence that comes batch
    by batch counts with its first batch. Without one (`like=None`) it is the allocation inside. Cost: that of the other
    criterion's evidence. Fails: `SpecError` where that is undefined on a group that the recipe's own scores.
    """

    of: Allocation = GlobalRanking()
    like: Criterion | None = None

    def asks(self) -> Mapping[str, Evidence]:
        other = {} if self.like is None else {PREFIX + name: e for name, e in self.like.asks().items()}
        return {**self.of.asks(), **other}

    def settings(self) -> dict[str, Any]:
        return {**({} if self.like is None else self.like.settings()), **super().settings()}

    def __call__(self, scores: Scores, density: float, space: Space, **given: Any) -> Masks:
        if self.like is None:
            return self.of(scores, density, space, **given)
        told = {n.removeprefix(PREFIX): t for n, t in given.items() if n.startswith(PREFIX)}
        if missing := [n for n in scores if any(n not in groups for groups in told.values())]:
            raise SpecError(f"SharesOf: {type(self.like).__name__} says nothing about {missing[0]}")
        other: dict[str, Tensor] = {}
        for name, own in scores.items():
            worth = self.like(**{n: groups[name] for n, groups in told.items()})
            worth = worth.sum(-1) if worth.ndim > own.ndim else worth
            other[name] = worth.masked_fill(~(own > -torch.inf), -torch.inf)
        masks = self.of(other, density, space, **{n: t for n, t in given.items() if not n.startswith(PREFIX)})
        return {n: best_of(space[n], s, count(masks[n])) for n, s in scores.items()}
