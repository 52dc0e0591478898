"""Analyses that prune or train: what `prunus.measure` cannot do, because it only looks.

>>> from prunus.lab import analyses
>>> analyses.sensitivity(model, task, "magnitude", (0.5, 0.9), accuracy)   # doctest: +SKIP

Nothing here changes the model that it is given.
"""

from __future__ import annotations

from prunus.lab.analyses.descent import DescentRun, noisy, pruned_curve
from prunus.lab.analyses.paths import Reached, effective_densities
from prunus.lab.analyses.scan import Scan, sensitivity
from prunus.lab.analyses.stability import Drop, Stability, stability

__all__ = [
    "DescentRun",
    "Drop",
    "Reached",
    "Scan",
    "Stability",
    "effective_densities",
    "noisy",
    "pruned_curve",
    "sensitivity",
    "stability",
]
