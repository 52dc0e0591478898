"""Each row of a weight at a density of its own."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.evidence import Evidence
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.core.rows import rows_top_k
from prunus.parts.allocation.constraints import best_of
from prunus.parts.allocation.selection import Rounding, kept
from prunus.parts.evidence.besa import LearnedRowShareEvidence

HALVINGS = 100


@dataclass(frozen=True)
class LearnedRows(Allocation):
    """Every row keeps the share that was learned for it, its best weights, so that the block's output stays what it was
    (BESA: Xu et al. 2024, arXiv:2402.16880, section 3).

    Exactly `kept(density, all units, rounding)` stay in a block: what was learned is scaled to that and rounded by
    largest remainders. Units that are no single weights have the density asked for in every group. Cost: see
    `LearnedRowShareEvidence`.

    Attributes:
        step: the distance of the candidates for a row's sparsity.
        rounds: how often the batches are gone through.
        rate: the learning rate.
        pull: how much the sparsity's distance from what was asked weighs.
        rounding: of the kept count.
    """

    step: float = 0.01
    rounds: int = 1
    rate: float = 0.01
    pull: float = 1.0
    rounding: Rounding = "floor"

    def __post_init__(self) -> None:
        if not (0 < self.step <= 0.5 and self.rounds >= 1 and self.rate > 0 and self.pull >= 0):
            raise SpecError(f"{self}: step is in (0, 0.5], rounds at least 1, rate above 0, pull at least 0")

    def asks(self) -> Mapping[str, Evidence]:
        return {"rows": LearnedRowShareEvidence()}

    def __call__(self, scores: Scores, density: float, space: Space, *, rows: Mapping[str, Tensor]) -> Masks:
        masks = {
            n: best_of(space[n], s, max(kept(density, s.numel(), self.rounding), space[n].at_least))
            for n, s in scores.items()
            if n not in rows
        }
        names = [n for n in scores if n in rows]
        if not names:
            return masks
        most = [(scores[n] > -torch.inf).sum(1) for n in names]
        wanted = [
            rows[n].squeeze(1).to(m.device).double() * scores[n].shape[1] for n, m in zip(names, most, strict=True)
        ]
        total = kept(density, sum(scores[n].numel() for n in names), self.rounding)
        counts = dealt(torch.cat([w.cpu() for w in wanted]), torch.cat([m.cpu() for m in most]), total)
        for n, k in zip(names, counts.split([len(m) for m in most]), strict=True):
            masks[n] = rows_top_k(scores[n], k.to(scores[n].device))
        return masks


def dealt(wanted: Float[Tensor, "rows"], most: Int[Tensor, "rows"], total: int) -> Int[Tensor, "rows"]:
    """Whole numbers in proportion to `wanted`, none above `most`, that sum to `total` (to all there are, if fewer)."""
    total = min(total, int(most.sum()))
    moved = wanted.clamp(min=1e-9)
    low, high = 0.0, float((most / moved).max())
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        enough = float(torch.minimum(middle * moved, most.double()).sum()) > total
        low, high = (low, middle) if enough else (middle, high)
    exact = torch.minimum(low * moved, most.double())
    counts = (exact + 1e-9).long()
    rest = (exact - counts).masked_fill(counts >= most, -1.0).argsort(descending=True, stable=True)
    counts[rest[: total - int(counts.sum())]] += 1
    return counts
