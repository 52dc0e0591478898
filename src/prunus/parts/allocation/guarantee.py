"""One relative error for all layers: how many channels each needs for it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.parts.allocation.dealing import HALVINGS, Counts, bounds, by_counts, rounded_to_total
from prunus.parts.allocation.selection import Rounding
from prunus.parts.evidence.relative import ReaderPatchesEvidence

Patches = Annotated[Mapping[str, Tensor], ReaderPatchesEvidence()]


@dataclass(frozen=True)
class ErrorGuarantee(Allocation):
    """One error eps for all layers (PFP: Liebenwein et al. 2020, arXiv:1911.07412): drawing
    m_l = (6 + 2 eps) / eps^2 * S_l * log(8 eta_l / delta) channels with probabilities s_j / S_l keeps every sum within
    1 +- eps, and as many stay as would be drawn at least once on average, sum_j 1 - (1 - s_j / S_l)^m_l.

    s are the scores of a layer (`ReaderSensitivity`), S_l their sum, eta_l the sums that the bound must hold for. eps
    is found by bisection, so that exactly `kept(density, all units, rounding)` stay; the ones with the largest scores
    do (the deterministic variant). Fails: meant for scores that are not negative.
    Differs: `constant` is that of the official code; the theorem's depends on how the inputs are distributed. Another
    one is another eps for the same counts, and hardly other counts.

    Attributes:
        delta: the probability with which the bound may fail.
        constant: what the sample sizes are multiplied by.
    """

    delta: float = 1e-16
    constant: float = 18.0
    rounding: Rounding = "floor"

    def __post_init__(self) -> None:
        if not 0.0 < self.delta < 1.0 or self.constant <= 0:
            raise SpecError(f"{self}: delta is a probability in (0, 1), the constant is positive")

    def __call__(self, scores: Scores, density: float, space: Space, *, patches: Patches) -> Masks:
        least, most = bounds(scores, space)
        logs = {n: (float(patches[n]) if n in patches else math.log(8.0)) - math.log(self.delta) for n in scores}

        def at(log_eps: float) -> dict[str, float]:
            needed = {n: self.needed(s, logs[n], math.exp(log_eps)) for n, s in scores.items()}
            return {n: float(min(max(m, least[n]), most[n])) for n, m in needed.items()}

        def rule(total: int) -> Counts:
            low, high = -30.0, 60.0  # more stay for a smaller error
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                low, high = (low, middle) if sum(at(middle).values()) <= total else (middle, high)
            return rounded_to_total(at(high), most, min(total, sum(most.values())))

        return by_counts(rule, scores, density, space, self.rounding)

    def needed(self, scores: Tensor, log: float, eps: float) -> float:
        """How many different channels a layer needs on average for the error `eps`."""
        s = scores.reshape(-1).double().clamp(min=0.0)
        total = float(s.sum())
        if total == 0:
            return 0.0
        draws = self.constant * (6 + 2 * eps) / eps**2 * total * log
        return float(-torch.expm1(torch.log1p(-(s / total).clamp(max=1 - 1e-15)) * draws).sum())
