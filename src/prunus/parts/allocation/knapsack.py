"""The most valuable units for a layer-wise cost that rises in steps: an exact knapsack."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.evidence import Evidence
from prunus.core.groups import Group
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.parts.allocation.constraints import best_of, feasible
from prunus.parts.allocation.dealing import Counts, bounds
from prunus.parts.allocation.selection import Rounding, kept
from prunus.parts.allocation.together import Normalize, best_together, normalized
from prunus.parts.evidence.cost import UnitCostEvidence
from prunus.parts.evidence.latency import LayerLatencyEvidence


@dataclass(frozen=True)
class LatencyKnapsack(Allocation):
    """max sum of scores with sum_l T_l(c_l) <= C: a layer's k-th best unit is kept only with the k - 1 before it, and
    its latency T_l(c) is a staircase (HALP: Shen et al. 2022, arXiv:2110.10811).

    Solved exactly by dynamic programming over the capacities, in `levels` equal parts of the dense latency, each T
    rounded up. For a density, the optimum with the most units within `kept(density, all units, rounding)` is taken, and
    topped up with the best units left, so that the count is exact; a budget in parameters or MACs is met along these.
    For a budget in latency the capacity itself is what is looked for, and nothing is topped up.
    Cost: levels * (sum of steps of all layers) operations, and the table. Fails: `SpecError` for a table that lacks
    counts. Differs: where a layer has fewer input channels is seen in the cost of the other layers only once those are
    pruned.

    Attributes:
        table: layer -> latency when keeping 0, 1, ..., all units; overrides the others.
        measured: go by what layers take on this machine (`LayerLatencyEvidence`). If False, T is the
            multiply-accumulates of the units, rounded up to whole steps.
        step: how many units a step is long.
        levels: of the capacity.
        normalize: what the scores of a layer are divided by first (`GlobalRanking`).
    """

    table: tuple[tuple[str, tuple[float, ...]], ...] = ()
    measured: bool = False
    step: int = 8
    levels: int = 1000
    rounding: Rounding = "floor"
    normalize: Normalize = "none"
    scope: ClassVar[Literal["global", "local"]] = "global"

    def __post_init__(self) -> None:
        if self.step < 1 or self.levels < 1:
            raise SpecError(f"LatencyKnapsack(step={self.step}, levels={self.levels}): both are at least 1")

    def asks(self) -> Mapping[str, Evidence]:
        return {"cost": LayerLatencyEvidence(self.step) if self.measured else UnitCostEvidence("macs")}

    def __call__(self, scores: Scores, density: float, space: Space, *, cost: Mapping[str, Tensor]) -> Masks:
        scores = normalized(scores, self.normalize)
        total = kept(density, sum(s.numel() for s in scores.values()), self.rounding)
        best = fullest(optima(self, scores, space, cost), bounds(scores, space)[0], total)
        # What is chosen stays whatever its score; the rest of the count goes to the best of the others.
        raised = {n: raised_best(space[n], s, best[n]) for n, s in scores.items()}
        return best_together(raised, density, space, self.rounding)

    def line(self, scores: Scores, space: Space, **evidence: Any) -> Callable[[float], Masks]:
        """Share of the capacity -> the most valuable units that fit in it."""
        return along(optima(self, normalized(scores, self.normalize), space, evidence["cost"]), scores, space)

    def timed(self, measured: bool) -> Allocation:
        """Itself, by this machine's tables where it was given none."""
        return replace(self, measured=self.measured or (measured and not self.table))


def optima(part: LatencyKnapsack, scores: Scores, space: Space, cost: Mapping[str, Tensor]) -> list[Counts]:
    """The most valuable counts for every capacity, from the smallest that there is a choice for."""
    least, most = bounds(scores, space)
    values = {n: value(s, most[n]) for n, s in scores.items()}
    times = {n: latencies(part, n, s, cost[n])[: most[n] + 1] for n, s in scores.items()}
    whole = sum(float(t[-1]) for t in times.values()) or 1.0
    weights = {n: np.ceil(np.round(t / whole * part.levels, 9)).astype(int) for n, t in times.items()}
    return frontier(values, weights, {n: possible(space[n], least[n], most[n]) for n in scores})


def latencies(part: LatencyKnapsack, name: str, scores: Tensor, cost: Tensor) -> np.ndarray:
    """`[units + 1]`: the latency of a layer that keeps 0, 1, ... units."""
    given = dict(part.table).get(name)
    if given is not None and len(given) != scores.numel() + 1:
        raise SpecError(f"the table says {len(given)} latencies for {name!r}; it needs {scores.numel() + 1}")
    if given is not None or part.measured:
        steps: Any = np.array(given, dtype=float) if given is not None else cost.cpu().numpy()
        return np.maximum.accumulate(steps)
    kept_units = np.arange(scores.numel() + 1)
    rounded = np.minimum(np.ceil(kept_units / part.step) * part.step, scores.numel())
    return rounded * float(cost.double().mean())  # type: ignore[no-any-return]


def along(found: list[Counts], scores: Scores, space: Space) -> Callable[[float], Masks]:
    """Share of the capacity -> masks: the minima at 0, all that is left at 1, between them the optima in order."""
    least, most = bounds(scores, space)

    def at(share: float) -> Masks:
        counts = least if share <= 0 else most if share >= 1 else found[int(share * (len(found) - 1))]
        return {n: best_of(space[n], s, counts[n]) & (s > -torch.inf) for n, s in scores.items()}

    return at


def fullest(found: list[Counts], least: Counts, total: int) -> Counts:
    """The one with the most units within `total`."""
    fitting = [c for c in found if sum(c.values()) <= total]
    return max([least, *fitting], key=lambda c: sum(c.values()))


def raised_best(group: Group, scores: Tensor, count: int) -> Tensor:
    """Scores with the best `count` units at infinity."""
    if not count:
        return scores
    return scores.double().masked_fill(best_of(group, scores, count) & (scores > -torch.inf), torch.inf)


def possible(group: Group, least: int, most: int) -> np.ndarray:
    """The counts that a group allows, from its minimum to what it has."""
    every = np.arange(least, most + 1)
    return every if group.multiple == group.parts == 1 else np.array([c for c in every if feasible(group, int(c)) == c])


def value(scores: Tensor, most: int) -> np.ndarray:
    """`[most + 1]`: the sum of the best 0, 1, ... scores."""
    ordered = scores.reshape(-1).double().cpu().sort(descending=True).values[:most]
    return np.concatenate([[0.0], ordered.cumsum(0).numpy()])


def frontier(
    values: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray], allowed: Mapping[str, np.ndarray]
) -> list[Counts]:
    """The counts of the most valuable choice for every capacity from 0 up, where there is one at all.

    Of several counts of equal weight only the most valuable is looked at, the larger on a tie.
    """
    capacity = sum(int(w[-1]) for w in weights.values())
    best = np.zeros(capacity + 1)
    chosen: dict[str, np.ndarray] = {}
    for name, value_of in values.items():
        options: dict[int, int] = {}
        for c in allowed[name].tolist():
            w = int(weights[name][c])
            if w not in options or value_of[c] >= value_of[options[w]]:
                options[w] = c
        rows = np.full((len(options), capacity + 1), -np.inf)
        for row, (w, c) in zip(rows, options.items(), strict=True):
            row[w:] = best[: capacity + 1 - w] + value_of[c]
        pick = rows.argmax(0)
        best = rows.max(0)
        chosen[name] = np.array(list(options.values()))[pick]
    found: list[Counts] = []
    for start in np.flatnonzero(np.isfinite(best)).tolist():
        left, counts = start, {}
        for name in reversed(list(values)):
            counts[name] = int(chosen[name][left])
            left -= int(weights[name][counts[name]])
        found.append({n: counts[n] for n in values})
    return found
