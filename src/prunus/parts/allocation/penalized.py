"""Allocations that hold what a unit costs against it, by subtraction."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.evidence import Evidence
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.parts.allocation.ranking import GlobalRanking
from prunus.parts.allocation.together import Normalize, check_normalize, normalized
from prunus.parts.allocation.wrapped import Around
from prunus.parts.evidence.cost import UnitCostEvidence, UnitCurrency


@dataclass(frozen=True)
class CostPenalized(Around):
    """score / norm of its layer - strength * cost, the cost in millions; then the allocation inside (FLOPs
    regularization of Molchanov et al. 2017, arXiv:1611.06440, section 2.2, with its strength).

    The cost is what would be saved if the unit were the next to go, with all coupled slices, see `UnitCostEvidence`.
    Cost: one traced run of the example (none for `params`). Fails: `SpecError` without an example.

    Attributes:
        of: what selects; it normalizes nothing more.
        strength: lambda, per million.
        normalize: as in `GlobalRanking`, before the cost is subtracted.
        by: multiply-accumulates, parameters or activations.
    """

    of: Allocation = GlobalRanking()
    strength: float = 1e-3
    normalize: Normalize = "l2"
    by: UnitCurrency = "macs"

    def __post_init__(self) -> None:
        check_normalize(self.normalize)
        if self.by not in get_args(UnitCurrency) or self.strength < 0:
            raise SpecError(f"{self}: strength >= 0, and cost is one of {', '.join(get_args(UnitCurrency))}")

    def asks(self) -> Mapping[str, Evidence]:
        return {**self.of.asks(), "cost": UnitCostEvidence(self.by)}

    def __call__(
        self, scores: Scores, density: float, space: Space, *, cost: Mapping[str, Tensor], **given: Any
    ) -> Masks:
        even = normalized(scores, self.normalize)
        fined = {n: s.double() - self.strength * cost[n].reshape(s.shape).to(s.device) / 1e6 for n, s in even.items()}
        return self.of(fined, density, space, **given)
