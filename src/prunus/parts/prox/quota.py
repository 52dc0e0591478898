"""Maps that hold every layer to a number of units that is itself being found."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.groups import Role
from prunus.core.part import Prox
from prunus.parts.evidence import LearningRate, OutgoingWeight
from prunus.parts.evidence.quota import Quota, held_back


@dataclass(frozen=True)
class CostQuota(Prox):
    """0 for the units with ||r||^2 < 2 eta y + rho_y eta ((k - s)_+^2 - (k - s - 1)_+^2), else 1; r the weights that
    read a unit, k its rank by ||r||, eta the learning rate, s how many units the layer may keep and y the multiplier of
    that constraint: the proximal map of the weights' step in energy-constrained compression (ECC: Yang, Zhu & Liu 2019,
    CVPR, arXiv:1812.01803, section 4).

    s and y follow a ceiling on the cost of the whole model, see `Quota`; the ceiling is what the recipe's allocation
    would leave of the model as it is at first. `by="clock"` fits the cost to `samples` measurements, the paper's way;
    macs and params are bilinear and known. Shapes: r `[units, k]`, factor `[units]`. Cost: that of `Quota`, and a sort
    per layer and step. Undefined where nothing reads a unit. Differs: s is a share of its layer in its own step, so
    that wide layers do not lag; weights are stepped by SGD's form of the map also where the optimizer is another.
    """

    by: Literal["macs", "params", "clock"] = "macs"
    samples: int = 100
    rho_y: float = 10.0
    rho_z: float = 10.0
    pace: float = 0.005
    clip: float = 1.0
    roles: ClassVar[tuple[Role, ...]] = ("in",)
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.by not in ("macs", "params", "clock") or self.samples < 1:
            raise SpecError(f"{self}: by is 'macs', 'params' or 'clock', at least 1 sample")
        if not (min(self.rho_y, self.rho_z) >= 0 and self.pace > 0 and self.clip > 0):
            raise SpecError(f"{self}: rho_y, rho_z not negative, pace and clip positive")

    def __call__(self, r: OutgoingWeight, quota: Quota, rate: LearningRate) -> Bool[Tensor, "units"]:
        s, y = quota.double().cpu().unbind(-1)
        energy, eta = r.square().sum(-1), float(rate)
        dual = float(held_back(energy, s, y, self.rho_y, eta))
        return energy >= 2 * eta * dual + self.rho_y * eta * beyond(energy, float(s))


def beyond(energy: Float[Tensor, "units"], s: float) -> Float[Tensor, "units"]:
    """(k - s)_+^2 - (k - s - 1)_+^2, k the rank from the largest, counted from 1; of equals the earlier is first."""
    rank = torch.empty_like(energy)
    rank[energy.argsort(descending=True, stable=True)] = torch.arange(1, len(energy) + 1).to(energy)
    grown: Tensor = (rank - s).clamp(min=0).square() - (rank - s - 1).clamp(min=0).square()
    return grown
