"""Channel counts of all layers at once, under a cost that multiplies the counts of neighbours: an integer program."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from prunus.core.errors import SpecError, require
from prunus.core.part import Scores, Space
from prunus.parts.allocation.constraints import feasible
from prunus.parts.allocation.counted import CountCost, Counted
from prunus.parts.allocation.dealing import Counts, bounds
from prunus.parts.allocation.knapsack import value
from prunus.parts.allocation.selection import Rounding


@dataclass(frozen=True)
class BilinearProgram(Counted):
    """max sum of scores with one of several counts per layer and the model's true cost, c_in * c_out products included,
    under a ceiling (the channel part of MDP: Sun et al. 2024, arXiv:2406.12079).

    One binary variable for each layer and count; the product of two of them, in the cost of a weight between two
    layers, is a continuous variable whose sums along either layer are that layer's variables, so that the linear
    program is exact. Solved by branch and bound (HiGHS). A layer's count is one of `choices` even steps from its
    minimum to what it has, and the best units of that number stay. Fails: `MissingExtraError` without scipy;
    `BudgetError` where the minimum costs more. Cost: a program with layers * choices binaries, and choices^2 variables
    for every two layers that a weight joins; some fifteen programs for a budget in units, one for a budget in `by`.
    Differs: the paper's cost is a measured latency for every pair of widths, here the exact multiply-accumulates (or
    parameters); it removes blocks in the same program, here none; it solves by outer approximation.
    """

    choices: int = 9
    by: Literal["macs", "params"] = "macs"
    gap: float = 0.0
    rounding: Rounding = "floor"
    scope: ClassVar[Literal["global", "local"]] = "global"

    def __post_init__(self) -> None:
        if self.choices < 2 or self.by not in ("macs", "params") or self.gap < 0:
            raise SpecError(f"{self}: at least 2 choices, the cost macs or params, the gap not negative")

    def solve(self, ceiling: float, cost: CountCost, scores: Scores, space: Space, given: Mapping[str, Any]) -> Counts:
        least, most = bounds(scores, space)
        options = []
        for n in cost.names:
            steps = np.linspace(least[n], most[n], self.choices).round().astype(int).tolist()
            options.append(np.array(sorted({min(most[n], max(least[n], feasible(space[n], c))) for c in steps})))
        values = [value(scores[n], most[n])[c] for n, c in zip(cost.names, options, strict=True)]
        picked = chosen(options, values, cost, ceiling, self.gap)
        return {n: int(c[i]) for n, c, i in zip(cost.names, options, picked, strict=True)}


def chosen(
    options: list[np.ndarray], values: list[np.ndarray], cost: CountCost, ceiling: float, gap: float
) -> list[int]:
    """Which option every layer takes: the most valuable ones that cost at most `ceiling`."""
    optimize = require("scipy.optimize", extra="solve", why="BilinearProgram solves an integer program")
    sparse = require("scipy.sparse", extra="solve")
    pairs = [(a, b) for a in range(len(options)) for b in range(a + 1, len(options)) if cost.square[a, b]]
    starts = np.cumsum([0, *(len(c) for c in options)])
    sizes = [len(options[a]) * len(options[b]) for a, b in pairs]
    after = np.cumsum([starts[-1], *sizes])
    price = np.zeros(after[-1])
    for layer, c in enumerate(options):
        price[starts[layer] : starts[layer + 1]] = (
            cost.linear[layer] * c + cost.square[layer, layer] * c.astype(float) ** 2
        )
    equal, right = (
        sparse.lil_matrix((len(options) + sum(len(options[a]) + len(options[b]) for a, b in pairs), after[-1])),
        [],
    )
    for layer in range(len(options)):
        equal[layer, starts[layer] : starts[layer + 1]] = 1.0
        right.append(1.0)
    for (a, b), begin in zip(pairs, after[:-1], strict=True):
        wide = len(options[b])
        price[begin : begin + len(options[a]) * wide] = 2 * cost.square[a, b] * np.outer(options[a], options[b]).ravel()
        for i in range(len(options[a])):
            equal[len(right), begin + i * wide : begin + (i + 1) * wide] = 1.0
            equal[len(right), starts[a] + i] = -1.0
            right.append(0.0)
        for j in range(wide):
            equal[len(right), begin + j : begin + len(options[a]) * wide : wide] = 1.0
            equal[len(right), starts[b] + j] = -1.0
            right.append(0.0)
    scale = max(1.0, abs(ceiling))
    gain = np.zeros(after[-1])
    gain[: starts[-1]] = -np.concatenate(values)
    found = optimize.milp(
        gain,
        integrality=np.arange(after[-1]) < starts[-1],
        bounds=optimize.Bounds(0.0, 1.0),
        constraints=[
            optimize.LinearConstraint(equal.tocsr(), right, right),
            optimize.LinearConstraint(price[None] / scale, -np.inf, (ceiling - cost.constant) / scale),
        ],
        options={"mip_rel_gap": gap},
    )
    if found.x is None:
        raise SpecError(f"the integer program ended without a solution: {found.message}")
    return [int(found.x[starts[i] : starts[i + 1]].argmax()) for i in range(len(options))]
