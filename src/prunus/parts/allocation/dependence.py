"""Layer widths by how little a layer tells about the others, under the model's cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from prunus.core.errors import SpecError, require
from prunus.core.evidence import Evidence
from prunus.core.part import Scores, Space
from prunus.parts.allocation.counted import CountCost, Counted, grown
from prunus.parts.allocation.dealing import Counts, bounds
from prunus.parts.allocation.selection import Rounding
from prunus.parts.evidence.dependence import FeatureGramEvidence, nhsic


@dataclass(frozen=True)
class DependenceProgram(Counted):
    """max sum_l I_l alpha_l with cost(alpha) <= budget, alpha_l in (0, 1] the share of units that stay and
    I_l = exp(-beta sum_{j != l} nHSIC(X_l, X_j) / sum of all) (ITPruner: Zheng et al. 2021, arXiv:2108.08532).

    A layer whose features say the same as all others' gets little. The linear objective is maximized under the exact,
    quadratic cost of the whole model by sequential quadratic programming (SLSQP) from alpha = 1, as in the official
    code; alphas are rounded down to whole units, which keeps the ceiling, and single units added while they fit. Which
    units stay, the scores say. A layer whose features are not seen gets the mean importance. Fails: `MissingExtraError`
    without scipy; `BudgetError` where the minimum costs more. Cost: one forward of one batch, one traced run, and a
    program in as many variables as there are layers, some fifteen of them for a budget in units.
    Differs: `beta` is the one number of the official script for ResNet-20; the paper sums the nHSIC as they are.
    """

    beta: float = 246.0
    by: Literal["macs", "params"] = "macs"
    rounding: Rounding = "floor"

    def __post_init__(self) -> None:
        if self.beta < 0 or self.by not in ("macs", "params"):
            raise SpecError(f"{self}: beta is not negative, the cost is macs or params")

    def asks(self) -> Mapping[str, Evidence]:
        return {**super().asks(), "grams": FeatureGramEvidence()}

    def solve(self, ceiling: float, cost: CountCost, scores: Scores, space: Space, given: Mapping[str, Any]) -> Counts:
        least, most = bounds(scores, space)
        names = cost.names
        units, low, high = (np.array([float(c[n]) for n in names]) for c in (sizes(scores), least, most))
        worth = importance(given["grams"], names, self.beta)
        counts = np.floor(shares(worth, units, low, high, cost, ceiling) * units + 1e-6).clip(low, high)
        # The solver stops a little outside at times: take from all alike until the ceiling holds.
        for shrink in np.linspace(1.0, 0.0, 101):
            whole = np.maximum(low, np.floor(counts * shrink + 1e-9))
            if cost(whole) <= ceiling * (1 + 1e-12):
                break
        each = {n: float(w) / u for n, w, u in zip(names, worth, units, strict=True)}
        return grown({n: int(c) for n, c in zip(names, whole, strict=True)}, most, ceiling, cost, each)


def sizes(scores: Scores) -> Counts:
    """How many units each layer has, dense."""
    return {n: s.numel() for n, s in scores.items()}


def shares(
    worth: np.ndarray, units: np.ndarray, low: np.ndarray, high: np.ndarray, cost: CountCost, ceiling: float
) -> np.ndarray:
    """The shares of the units that are worth most in all and cost at most `ceiling`."""
    optimize = require("scipy.optimize", extra="solve", why="DependenceProgram solves a program")
    scale = cost(units) or 1.0
    found = optimize.minimize(
        lambda a: -float(worth @ a),
        x0=high / units,
        jac=lambda a: -worth,
        bounds=list(zip(low / units, high / units, strict=True)),
        constraints={
            "type": "ineq",
            "fun": lambda a: (ceiling - cost(a * units)) / scale,
            "jac": lambda a: -cost.slope(a * units) * units / scale,
        },
        method="SLSQP",
        options={"maxiter": 300, "ftol": 1e-10},
    )
    return np.asarray(found.x)


def importance(grams: Mapping[str, Tensor], names: tuple[str, ...], beta: float) -> np.ndarray:
    """I_l of every layer; where it is not known, their mean."""
    known = [n for n in names if n in grams]
    sums = {n: sum(nhsic(grams[n], grams[m]) for m in known if m != n) for n in known}
    whole = sum(sums.values()) or 1.0
    found = {n: math.exp(-beta * s / whole) for n, s in sums.items()}
    # Only ratios matter: a large beta must not make all of them vanish.
    largest = max(found.values(), default=1.0) or 1.0
    shares = {n: v / largest for n, v in found.items()}
    mean = sum(shares.values()) / len(shares) if shares else 1.0
    return np.array([shares.get(n, mean) for n in names])
