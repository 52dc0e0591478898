"""Criteria that leave the judgement to what was learned."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.evidence import GateValue, Kept, Weight
from prunus.parts.evidence.clusters import Clusters
from prunus.parts.evidence.controller import Controlled


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


@dataclass(frozen=True)
class ControllerWorth(Criterion):
    """The log-odds that a controller gives to keeping a unit, trained beside the model on calibration batches, with the
    share of what stays drawn to the budget's (ATO: Wu et al. 2024, CVPR, arXiv:2403.14729).

    Set `weighs` to what the budget counts: units, params or macs. For the rest see `ControllerEvidence`. Shapes:
    `[*units, 1] -> [*units, 1]`. Units: log-odds, comparable across the network. Cost: a forward and backward every
    `every` steps between the fractions `begin` and `until`. Outside of training units are ranked nearly at random.
    Differs: the official code rounds a Gumbel draw to masks anew in every epoch, where units are ranked here; of its
    recurrent network it gives the optimizer one direction only.
    """

    weighs: Literal["units", "params", "macs"] = "units"
    begin: float = 0.1
    until: float = 0.5
    every: int = 20
    strength: float = 8.0
    base: float = 3.0
    tau: float = 0.4
    rate: float = 1e-3
    decay: float = 1e-2

    def __post_init__(self) -> None:
        if not (0 <= self.begin <= self.until <= 1 and self.every >= 1 and self.tau > 0 and self.rate > 0):
            raise SpecError(f"{self}: 0 <= begin <= until <= 1, every >= 1, tau > 0, rate > 0")
        if self.weighs not in ("units", "params", "macs") or min(self.strength, self.decay) < 0:
            raise SpecError(f"{self}: weighs is units, params or macs; strength and decay are not negative")

    def __call__(self, odds: Controlled) -> Float[Tensor, "*units 1"]:
        return odds
