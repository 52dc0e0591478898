"""The law that error follows along iterative magnitude pruning, fitted to measured points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunus.core.errors import SpecError, require

# Of the logarithms of high / dense, gamma and p.
LIMITS = (np.log([1.0, 1e-3, 1e-9]), np.log([1e6, 1e2, 10.0]))


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
    fits = [optimize.least_squares(difference, np.clip(s, *LIMITS), bounds=LIMITS) for s in starts]
    best = min(fits, key=lambda f: float(f.cost))
    ratio, gamma, p = np.exp(best.x)
    return ScalingLaw(base, base * float(ratio), float(gamma), float(p), float(np.sqrt(np.mean(best.fun**2))))


def scaling_intervals(
    law: ScalingLaw,
    densities: Sequence[float],
    errors: Sequence[float],
    *,
    share: float = 0.9,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Intervals of a fitted law's free parameters (`high`, `gamma`, `p`): the middle `share` of fits to resampled
    points.

    Points are the fitted curve times the relative residuals, drawn with replacement (Efron & Tibshirani 1993, An
    Introduction to the Bootstrap, section 9.4), centred and scaled by sqrt(n / (n - 3)) for the three fitted.
    They tell how far the points pin the law down if it is the true one, and nothing about whether it is.

    Args:
        law: what `fit_scaling_law` made of these points.

    Cost: a small fit per resample, each begun at the law. Errors: `SpecError` for a share that is not in (0, 1) or
    fewer than 20 resamples, `MissingExtraError` without scipy; the points are not checked again.
    """
    if not 0 < share < 1 or resamples < 20:
        raise SpecError(f"share={share}, resamples={resamples}: a share lies in (0, 1), and fewer than 20 are too few")
    d, e = np.asarray(densities, dtype=float), np.asarray(errors, dtype=float)
    optimize = require("scipy.optimize", extra="solve", why="a scaling law is fitted by least squares")
    begin = np.log([law.high / law.dense, law.gamma, law.p])
    fitted = _errors(d, law.dense, *begin)
    apart = e / fitted - 1.0
    apart = (apart - apart.mean()) * np.sqrt(len(d) / max(1, len(d) - 3))
    draw, found = np.random.default_rng(seed), []
    for _ in range(resamples):
        again = fitted * np.maximum(1e-6, 1.0 + draw.choice(apart, len(d)))
        fit = optimize.least_squares(
            lambda free, again=again: _errors(d, law.dense, *free) / again - 1.0, np.clip(begin, *LIMITS), bounds=LIMITS
        )
        ratio, gamma, p = np.exp(fit.x)
        found.append((law.dense * ratio, gamma, p))
    low, high = np.quantile(np.array(found), [(1 - share) / 2, (1 + share) / 2], axis=0)
    return {n: (float(a), float(b)) for n, a, b in zip(("high", "gamma", "p"), low, high, strict=True)}


def _errors(d: np.ndarray, dense: float, log_ratio: float, log_gamma: float, log_p: float) -> np.ndarray:
    gamma, p = np.exp(log_gamma), np.exp(log_p)
    far = p * np.exp(np.minimum(log_ratio / gamma, 300.0))
    return dense * ((d**2 + far**2) / (d**2 + p**2)) ** (gamma / 2)  # type: ignore[no-any-return]
