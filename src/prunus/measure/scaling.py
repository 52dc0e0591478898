"""The law that error follows along iterative magnitude pruning, fitted to measured points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunus.core.errors import SpecError, require


@dataclass(frozen=True)
class ScalingLaw:
    """error(d) = dense |(d - i p (high / dense)^(1 / gamma)) / (d - i p)|^gamma, with i the imaginary unit (Rosenfeld
    et al. 2021, arXiv:2006.10621): flat at `dense`, then a power of 1 / d with exponent gamma, then flat at `high`.

    Attributes:
        dense: the error of the dense network, as d grows.
        high: the error at which pruning ends, as d goes to zero.
        gamma: the exponent in between.
        p: the density around which the error reaches `high`.
        residual: root mean square of the relative differences to the points that it was fitted to.
    """

    dense: float
    high: float
    gamma: float
    p: float
    residual: float = 0.0

    def __call__(self, density: float) -> float:
        """The error at a density in (0, 1]."""
        return float(_errors(np.array([density]), self.dense, *np.log([self.high / self.dense, self.gamma, self.p]))[0])


def fit_scaling_law(densities: Sequence[float], errors: Sequence[float], *, dense: float | None = None) -> ScalingLaw:
    """The law that is nearest to measured errors, by least squares of relative differences.

    Args:
        densities: the shares of weights left, in (0, 1]; at least four.
        errors: the errors there (a share of wrong answers, a loss), positive.
        dense: the error of the dense network; the one at the largest density where it is left out.

    Cost: 24 small fits from different starting points. Needs scipy.
    Errors: `SpecError` for too few or impossible points, `MissingExtraError` without scipy.
    Differs: one network's curve; the paper also ties the curves of several depths, widths and data sizes to one
    invariant, depth^phi width^psi density.
    """
    d, e = np.asarray(densities, dtype=float), np.asarray(errors, dtype=float)
    if d.shape != e.shape or d.ndim != 1 or len(d) < 4:
        raise SpecError(f"a scaling law is fitted to at least 4 densities with an error each, got {d.shape}, {e.shape}")
    if not ((d > 0) & (d <= 1)).all() or not (np.isfinite(e) & (e > 0)).all():
        raise SpecError("densities lie in (0, 1] and errors are positive and finite")
    base = float(e[d.argmax()]) if dense is None else float(dense)
    if base <= 0:
        raise SpecError(f"the dense network's error is {base}; relative differences need one above zero")
    optimize = require("scipy.optimize", extra="solve", why="a scaling law is fitted by least squares")

    def difference(free: np.ndarray) -> np.ndarray:
        return _errors(d, base, *free) / e - 1.0  # type: ignore[no-any-return]

    starts = [
        np.log([max(1.01, e.max() / base), gamma, p])
        for gamma in (0.3, 1.0, 3.0)
        for p in np.geomspace(d.min() / 4, max(d.min(), d.max() / 2), 8)
    ]
    limits = (np.log([1.0, 1e-3, 1e-9]), np.log([1e6, 1e2, 10.0]))
    fits = [optimize.least_squares(difference, np.clip(s, *limits), bounds=limits) for s in starts]
    best = min(fits, key=lambda f: float(f.cost))
    ratio, gamma, p = np.exp(best.x)
    return ScalingLaw(base, base * float(ratio), float(gamma), float(p), float(np.sqrt(np.mean(best.fun**2))))


def _errors(d: np.ndarray, dense: float, log_ratio: float, log_gamma: float, log_p: float) -> np.ndarray:
    gamma, p = np.exp(log_gamma), np.exp(log_p)
    far = p * np.exp(np.minimum(log_ratio / gamma, 300.0))
    return dense * ((d**2 + far**2) / (d**2 + p**2)) ** (gamma / 2)  # type: ignore[no-any-return]
