"""What a curve of scores against sparsity shows: where it drops, and whether it rises again after it has fallen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from prunus.core.errors import SpecError


@dataclass(frozen=True)
class EssentialSparsity:
    """Where a curve of one-shot pruning drops.

    Attributes:
        within: the largest sparsity up to which no point lies more than `tolerance` below the dense network.
        turn: the sparsity after which the score falls so much faster than before it: where the slope drops most; None
            where it never begins to fall.
        before, after: score lost per unit of sparsity on either side of the turn; NaN where there is none.
        tolerance: what counts as no loss.
        dense: the score without pruning.
    """

    within: float
    turn: float | None
    before: float
    after: float
    tolerance: float
    dense: float


def essential_sparsity(
    sparsities: Sequence[float], scores: Sequence[float], *, tolerance: float = 0.01
) -> EssentialSparsity:
    """The sharp turn of one-shot magnitude pruning (Jaiswal et al. 2023, NeurIPS, arXiv:2306.03805: a range of weights
    that goes at almost no loss, at most 1 % there, and a turning point after which performance falls rapidly).

    Args:
        sparsities: from 0, which is the dense network, upwards; at least four.
        scores: higher is better (an accuracy).

    Both answers are points of the grid: a finer one tells them finer.
    Errors: `SpecError` for fewer points, unordered ones, a first one other than 0, or a tolerance that is negative.
    Differs: the paper names no formula for the turn; here it is the point of the largest fall of the slope.
    """
    s, y = _curve(sparsities, scores, 4)
    if s[0] != 0:
        raise SpecError(
            f"the first sparsity is {s[0]:g}: it must be 0, the dense network, which losses are read against"
        )
    if not tolerance >= 0:
        raise SpecError(f"tolerance={tolerance}: what counts as no loss is 0 or more")
    bad = np.flatnonzero(y < y[0] - tolerance - 1e-12)
    slopes = np.diff(y) / np.diff(s)
    falls = np.where(slopes[1:] < 0, np.diff(slopes), np.inf)
    at = int(np.argmin(falls)) + 1
    turns = bool(falls[at - 1] < 0)
    return EssentialSparsity(
        within=float(s[bad[0] - 1] if len(bad) else s[-1]),
        turn=float(s[at]) if turns else None,
        before=0.0 - float(slopes[at - 1]) if turns else float("nan"),
        after=0.0 - float(slopes[at]) if turns else float("nan"),
        tolerance=tolerance,
        dense=float(y[0]),
    )


@dataclass(frozen=True)
class DoubleDescent:
    """A curve that falls, rises again and falls at last.

    Attributes:
        trough: sparsity at which the score is lowest before it rises (the end of the critical phase).
        peak: sparsity at which it is highest after that (the end of the sweet phase).
        fall: score lost from the best point before the trough.
        rise: score won back from trough to peak.
    """

    trough: float
    peak: float
    fall: float
    rise: float


def double_descent(sparsities: Sequence[float], scores: Sequence[float]) -> DoubleDescent | None:
    """The largest rise of test accuracy after it has fallen, along growing sparsity; None where it never does.

    Sparse double descent: performance gets worse by overfitting, then better, then worse at last (He et al. 2022, ICML,
    arXiv:2206.08684). Of pairs trough < peak that follow a fall, the one with the largest rise; a rise within the
    spread of seeds shows nothing.
    Errors: `SpecError` for fewer than three points or unordered ones.
    """
    s, y = _curve(sparsities, scores, 3)
    best: DoubleDescent | None = None
    for i in range(1, len(s) - 1):
        fall, peak = float(y[:i].max() - y[i]), i + 1 + int(np.argmax(y[i + 1 :]))
        rise = float(y[peak] - y[i])
        if fall > 0 and rise > 0 and (best is None or rise > best.rise):
            best = DoubleDescent(float(s[i]), float(s[peak]), fall, rise)
    return best


def _curve(sparsities: Sequence[float], scores: Sequence[float], least: int) -> tuple[np.ndarray, np.ndarray]:
    s, y = np.asarray(sparsities, dtype=float), np.asarray(scores, dtype=float)
    if s.shape != y.shape or s.ndim != 1 or len(s) < least:
        raise SpecError(f"a curve is read from at least {least} sparsities with a score each, got {s.shape}, {y.shape}")
    if any(b <= a for a, b in pairwise(s)) or not ((s >= 0) & (s < 1)).all() or not np.isfinite(y).all():
        raise SpecError("sparsities grow and lie in [0, 1), and every score is a number")
    return s, y
