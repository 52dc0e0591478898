"""Criteria that leave the judgement to what was learned."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.evidence import GateValue, Kept, Weight
from prunus.parts.evidence.clusters import Clusters


@dataclass(frozen=True)
class LearnedGate(Criterion):
    """What the recipe's gate has learned that a unit is worth (`Gate.worth`).

    Shapes: `[*units, 1] -> [*units, 1]`. Units: those of the gate. Cost: none; the gates were trained before. Fails:
    `SpecError` where the recipe has no gate.
    """

    def __call__(self, gate: GateValue) -> Float[Tensor, "*units 1"]:
        return gate


@dataclass(frozen=True)
class AboveThreshold(Criterion):
    """|w| - t, t the threshold that the recipe's gate has learned (whose worth is -t): by how much a weight clears it
    (soft thresholds: Kusupati et al. 2020, arXiv:2002.03231; masking thresholds: Liu et al. 2020, arXiv:2005.06870).

    Shapes: `[*units, 1] -> [*units, 1]`. Units: those of the weights; what is positive is what the gate keeps by
    itself, in every layer. Cost: none. Fails: `SpecError` where the recipe has no gate. Differs: the papers keep what
    is positive; a ranking keeps as many as the budget says.
    """

    def __call__(self, w: Weight, gate: GateValue) -> Float[Tensor, "*units 1"]:
        return w.abs() + gate


@dataclass(frozen=True)
class Hysteresis(Criterion):
    """|w|, times `bonus` for what is kept by now: a weight is dropped below a and taken back above b = bonus a (dynamic
    network surgery: Guo, Yao & Chen 2016, NIPS, arXiv:1608.04493, eq. 3; a = 0.9 and b = 1.1 of a threshold there).

    Shapes: `[*units, k] -> [*units, k]`. Units: those of the weights; the paper has thresholds for each layer. Cost:
    one pass over the weights. Differs: the threshold is where the budget puts it (mean plus a multiple of the standard
    deviation of |w|, once measured, in the paper).
    """

    bonus: float = 1.1 / 0.9

    def __post_init__(self) -> None:
        if not self.bonus >= 1:
            raise SpecError(f"Hysteresis(bonus={self.bonus}): at least 1")

    def __call__(self, w: Weight, kept: Kept) -> Float[Tensor, "*units k"]:
        return w.abs() * (1 + (self.bonus - 1) * kept.to(w.dtype))


@dataclass(frozen=True)
class ClusterLargest(Criterion):
    """1 for the unit of largest norm in every cluster, 0 for the others: one of each stays (the trimming of centripetal
    SGD, which leaves any, since they are equal by then: Ding et al. 2019, arXiv:1904.03837, section 3.3).

    The clusters are those that a `Centripetal` penalty has trained. Shapes: `[units, k]`, `[units] -> [units]`. Units:
    none. Cost: one pass over the weights. Undefined for single weights. Of equals the earlier is taken.
    """

    cluster: Literal["kmeans", "even"] = "kmeans"

    def __call__(self, w: Weight, cluster: Clusters) -> Float[Tensor, "units"]:
        mine, size = cluster.unsqueeze(1) == cluster.unsqueeze(0), w.norm(dim=1)
        larger = size.unsqueeze(1) < size.unsqueeze(0)
        tied = (size.unsqueeze(1) == size.unsqueeze(0)).tril(-1)
        beaten: Tensor = (mine & (larger | tied)).any(1)
        return (~beaten).double()
