"""The clock of budgets in latency: how long a pruned model takes, as a share of the dense one's time."""

from __future__ import annotations

from torch import nn

from prunus.core.budget import Timing
from prunus.measure.inputs import Example
from prunus.measure.timing import compare, quartiles


def latency_share(
    dense: nn.Module, pruned: nn.Module, example: Example, *, runs: int = 50, min_seconds: float = 0.5
) -> Timing:
    """The median latency of `pruned` over that of `dense`, both run in turn on the example, and the quartiles.

    The quartiles are over ratios of neighbouring runs. Settings, cost and errors are those of `measure.compare`.
    """
    found = compare({"dense": dense, "pruned": pruned}, example, runs=runs, min_seconds=min_seconds).latency
    pairs = zip(found["pruned"].samples_ms, found["dense"].samples_ms, strict=True)
    low, _, high = quartiles([a / b for a, b in pairs])
    return Timing(found["pruned"].median_ms / found["dense"].median_ms, low, high)
