"""Allocations that give each layer a share by a rule of thumb about the layer: first, last, costly, well used."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from prunus.core.counting import count
from prunus.core.errors import SpecError
from prunus.core.evidence import Evidence
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.parts.allocation.dealing import Counts, bounds, by_counts, poured
from prunus.parts.allocation.selection import Rounding
from prunus.parts.evidence.cost import UnitCostEvidence, UnitCurrency


@dataclass(frozen=True)
class UniformPlus(Allocation):
    """Uniform, but the first convolution stays dense and the last linear layer keeps at least `last` of its weights
    (uniform+: Gale et al. 2019, arXiv:1902.09574; as in Liu et al. 2022, arXiv:2202.02643).

    What the two take comes from the others' share: the total is exactly `kept(density, all units, rounding)`. A network
    that begins with a linear layer has no dense one. Where the two alone would take everything, they are pruned like
    the others. Cost: one selection per layer. Differs: the official code subtracts the two from the budget only below
    density 0.2 and then divides by all weights, so that its total is another one; it draws masks weight by weight.
    """

    last: float = 0.2
    rounding: Rounding = "floor"

    def __post_init__(self) -> None:
        if not 0.0 <= self.last <= 1.0:
            raise SpecError(f"UniformPlus(last={self.last}) is a density, in [0, 1]")

    def __call__(self, scores: Scores, density: float, space: Space) -> Masks:
        return by_counts(lambda k: self.counts(scores, space, k), scores, density, space, self.rounding)

    def counts(self, scores: Scores, space: Space, total: int) -> Counts:
        """Kept units per group; they sum to the total."""
        names, units = list(scores), {n: scores[n].numel() for n in scores}
        least, most = bounds(scores, space)
        density = total / max(1, sum(units.values()))
        set_apart: dict[str, int] = {}
        if len(names) > 1 and len(space[names[0]].weight) > 2:
            set_apart[names[0]] = most[names[0]]
        if len(names) > 1 and len(space[names[-1]].weight) == 2 and density < self.last:
            set_apart[names[-1]] = min(round(self.last * units[names[-1]]), most[names[-1]])
        if sum(set_apart.values()) + sum(least[n] for n in names if n not in set_apart) >= total:
            set_apart = {}
        rest = {n: float(units[n]) for n in names if n not in set_apart}
        return set_apart | poured(rest, least, most, total - sum(set_apart.values()))


@dataclass(frozen=True)
class ComplexityAware(Allocation):
    """A layer loses units in proportion to its share of the network's parameters, multiply-accumulates or activations
    (parameter-, FLOPs- and memory-aware pruning: Zawish et al. 2022, arXiv:2208.12816).

    removed_l = share_l * removed units in all, cut to what a layer can lose; the rest goes to the others, so the total
    is exact. A layer's complexity is that of the weights that produce its units. At an event after others, that of
    the network as it is by then. Cost: one traced run of the example (none for `params`).
    Differs: the paper draws the layers to prune at random with these shares as probabilities, one filter at a time;
    this is what it comes to on average.
    """

    by: UnitCurrency = "params"
    rounding: Rounding = "floor"

    def __post_init__(self) -> None:
        if self.by not in get_args(UnitCurrency):
            raise SpecError(
                f"ComplexityAware(by={self.by!r}): complexity is one of {', '.join(get_args(UnitCurrency))}"
            )

    def asks(self) -> Mapping[str, Evidence]:
        return {"cost": UnitCostEvidence(self.by, own=True)}

    def __call__(self, scores: Scores, density: float, space: Space, *, cost: Mapping[str, Tensor]) -> Masks:
        units = {n: s.numel() for n, s in scores.items()}
        least, most = bounds(scores, space)
        share = {n: float(cost[n].sum()) for n in scores}

        def rule(total: int) -> Counts:
            gone = {n: units[n] - most[n] for n in units}
            can_go = {n: units[n] - least[n] for n in units}
            removed = poured(share, gone, can_go, sum(units.values()) - total)
            return {n: units[n] - removed[n] for n in units}

        return by_counts(rule, scores, density, space, self.rounding)


@dataclass(frozen=True)
class Reallocation(Allocation):
    """A layer's width is proportional to its width so far times the mean score of its units: units move from layers of
    low to layers of high average (PEEL: Hou et al. 2021, arXiv:2103.01847, with |gamma| as the score).

    The total is exactly `kept(density, all units, rounding)`; no layer grows beyond what it has. Scores are compared
    across layers and not negative. Differs: the paper widens a small backbone, and then trains it from scratch; here
    the small backbone is the uniformly thinner network, which lies inside the dense one.
    """

    rounding: Rounding = "floor"

    def __call__(self, scores: Scores, density: float, space: Space) -> Masks:
        least, most = bounds(scores, space)
        wanted = {n: s.numel() * mean_score(s) for n, s in scores.items()}
        return by_counts(lambda k: poured(wanted, least, most, k), scores, density, space, self.rounding)


def mean_score(scores: Tensor) -> float:
    """The mean of the scores of units that are still there; 0 where none is."""
    there = scores.isfinite()
    return max(0.0, float(scores[there].double().mean())) if count(there) else 0.0
