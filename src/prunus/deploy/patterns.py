"""What pruning left of a model, as far as a runtime can make speed of it: fewer operations, zeros in some pattern."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.task import Example
from prunus.deploy.runtimes.base import Pattern
from prunus.measure.inputs import uncompiled
from prunus.measure.operations import macs

NOTABLE = 0.05  # a smaller share of zeros is no pattern that anybody made
BLOCK = 4  # consecutive output channels that share their zeros


@dataclass(frozen=True)
class Left:
    """A pruned model beside its dense one.

    Attributes:
        macs_ratio: multiply-accumulates of one run, dense / pruned, zeros multiplied like anything else.
        effective_ratio: all of the dense model / those of the pruned one with nonzero weights.
        zeros: share of zeros in the pruned model's matrices and filters.
        patterns: patterns of zeros that most of these zeros lie in; several may hold at once.
    """

    macs_ratio: float
    effective_ratio: float
    zeros: float
    patterns: frozenset[Pattern]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"patterns": sorted(self.patterns)}


def left(dense: nn.Module, pruned: nn.Module, example: Example | Tensor) -> Left:
    """Compare two models by what they compute and by their zeros. Cost: two runs without arithmetic, one pass."""
    before, after = macs(dense, example), macs(pruned, example)
    # Layers, not every parameter: embeddings are looked up, and no kernel multiplies with them.
    weights = [p.detach() for n, p in uncompiled(pruned).named_parameters() if p.ndim >= 2 and n in after.per_parameter]
    total = sum(w.numel() for w in weights)
    empty = {w: int((w == 0).sum()) for w in weights}
    zeros = sum(empty.values())
    found: set[Pattern] = set()
    if total and zeros / total >= NOTABLE:
        found.add("unstructured")
        for name, holds in (("2:4", two_of_four), ("blocks", _blocks)):
            if sum(n for w, n in empty.items() if holds(w)) > zeros / 2:
                found.add(name)  # type: ignore[arg-type]  # the names are those of the type
    return Left(
        macs_ratio=before.total / after.total if after.total else 1.0,
        effective_ratio=before.total / after.effective if after.effective else float("inf"),
        zeros=zeros / total if total else 0.0,
        patterns=frozenset(found),
    )


def two_of_four(weight: Tensor) -> bool:
    """Whether two of every four consecutive inputs are zero, in every row."""
    rows = weight.flatten(1)
    if rows.shape[1] % 4:
        return False
    return bool(((rows == 0).reshape(-1, 4).sum(1) >= 2).all())


def _blocks(weight: Tensor) -> bool:
    """Whether `BLOCK` consecutive outputs share most of their zeros."""
    rows = weight.flatten(1) == 0
    whole = rows[: len(rows) // BLOCK * BLOCK]
    if not len(whole):
        return False
    shared = whole.reshape(-1, BLOCK, rows.shape[1]).all(1).sum() * BLOCK
    return bool(shared > 0.9 * torch.count_nonzero(whole)) and bool(shared > 0)
