"""Programs over the number of units of each layer, under the exact cost of the whole model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from prunus.core.errors import BudgetError
from prunus.core.evidence import Evidence
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.parts.allocation.constraints import best_of
from prunus.parts.allocation.dealing import Counts, bounds, by_counts, poured
from prunus.parts.allocation.selection import Rounding
from prunus.parts.evidence.cost import CONSTANT, CountCostEvidence

CUTS = 14


@dataclass(frozen=True)
class CountCost:
    """The cost of a model as a function of how many units of each layer are left; see `CountCostEvidence`."""

    names: tuple[str, ...]
    constant: float
    linear: np.ndarray
    square: np.ndarray

    @classmethod
    def of(cls, table: Mapping[str, Tensor]) -> "CountCost":
        names = tuple(n for n in table if n != CONSTANT)
        rows = np.stack([table[n].cpu().numpy() for n in names])
        return cls(names, float(table[CONSTANT]), rows[:, 0], (rows[:, 1:] + rows[:, 1:].T) / 2)

    def __call__(self, counts: np.ndarray) -> float:
        return float(self.constant + self.linear @ counts + counts @ self.square @ counts)

    def slope(self, counts: np.ndarray) -> np.ndarray:
        """What one more unit of each layer would cost, to first order."""
        return self.linear + 2 * self.square @ counts  # type: ignore[no-any-return]


class Counted(Allocation, ABC):
    """An allocation that solves for the counts of all layers under a ceiling on the model's cost in currency `by`.

    A budget in `by` is met in one solution (`afford`). One in units is met by bisection over the ceiling: the solution
    with the most units within the count, and what is missing dealt out in its proportions.
    """

    by: Literal["macs", "params"]
    rounding: Rounding

    @property
    def pays(self) -> str:  # type: ignore[override]
        """The currency in which a budget is met without searching."""
        return self.by

    def asks(self) -> Mapping[str, Evidence]:
        return {"cost": CountCostEvidence(self.by)}

    @abstractmethod
    def solve(self, ceiling: float, cost: CountCost, scores: Scores, space: Space, given: Mapping[str, Any]) -> Counts:
        """Units of each layer that cost at most `ceiling` in all."""

    def afford(self, scores: Scores, keep: float, space: Space, **given: Any) -> Masks:
        """Masks that leave at most the share `keep` of the dense model's cost.

        Errors: `BudgetError` where every layer's minimum costs more.
        """
        price = CountCost.of(given["cost"])
        counts = self.within(keep, price, scores, space, given)
        return {n: best_of(space[n], s, counts[n]) for n, s in scores.items()}

    def within(self, keep: float, cost: CountCost, scores: Scores, space: Space, given: Mapping[str, Any]) -> Counts:
        """The solution for a share of the dense cost."""
        dense, floor = ends(cost, scores, space)
        check_reachable(keep, floor / (dense or 1.0), self.by)
        return self.solve(keep * dense, cost, scores, space, given)

    def __call__(
        self, scores: Scores, density: float, space: Space, *, cost: Mapping[str, Tensor], **given: Any
    ) -> Masks:
        price = CountCost.of(cost)
        least, most = bounds(scores, space)
        dense, floor = ends(price, scores, space)

        def rule(total: int) -> Counts:
            def solved(keep: float) -> Counts:
                return self.within(keep, price, scores, space, given)

            best = dict(most) if total >= sum(most.values()) else fullest(solved, least, floor / (dense or 1.0), total)
            return poured({n: float(c) for n, c in best.items()}, best, most, total)

        return by_counts(rule, scores, density, space, self.rounding)


def check_reachable(keep: float, floor: float, by: str) -> None:
    """Refuse a share of the cost below what every layer's minimum leaves."""
    if floor > keep * (1 + 1e-12):
        raise BudgetError(
            f"{keep:.4g} of the {by} cannot be met: with every group at its minimum {floor:.4g} is left. Ask for more, "
            f"or let more be pruned (exclude, at_least, granularity)"
        )


def ends(cost: CountCost, scores: Scores, space: Space) -> tuple[float, float]:
    """What the dense model costs, and what every layer's minimum does."""
    least, _ = bounds(scores, space)
    dense = cost(np.array([float(scores[n].numel()) for n in cost.names]))
    return dense, cost(np.array([float(least[n]) for n in cost.names]))


def fullest(solved: Callable[[float], Counts], least: Counts, start: float, total: int) -> Counts:
    """Of the solutions for shares between `start` and all of the cost, the one with the most units within `total`."""
    best, low, high = dict(least), start, 1.0
    for _ in range(CUTS):
        middle = (low + high) / 2
        found = solved(middle)
        if sum(found.values()) <= total:
            low, best = middle, max(best, found, key=lambda c: sum(c.values()))
        else:
            high = middle
    return best


def grown(counts: Counts, most: Counts, ceiling: float, cost: CountCost, worth: Mapping[str, float]) -> Counts:
    """With single units added where one is worth most for what it costs, as long as the ceiling allows."""
    now = np.array([counts[n] for n in cost.names], dtype=float)
    open_ = {n: i for i, n in enumerate(cost.names) if counts[n] < most[n]}
    while open_:
        prices = {}
        here = cost(now)
        for n, i in open_.items():
            step = now.copy()
            step[i] += 1
            prices[n] = cost(step) - here
        fitting = {n: p for n, p in prices.items() if here + p <= ceiling * (1 + 1e-12)}
        if not fitting:
            break
        name = max(fitting, key=lambda n: worth[n] / max(fitting[n], 1e-12))
        now[open_[name]] += 1
        if now[open_[name]] >= most[name]:
            del open_[name]
    return {n: int(c) for n, c in zip(cost.names, now, strict=True)}
