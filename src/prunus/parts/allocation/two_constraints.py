"""A ceiling on the units and one on their cost at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.evidence import Evidence
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.parts.allocation.constraints import protected, respected
from prunus.parts.allocation.dealing import HALVINGS
from prunus.parts.allocation.selection import Rounding, kept, top_k
from prunus.parts.evidence.cost import UnitCostEvidence, UnitCurrency


@dataclass(frozen=True)
class TwoConstraint(Allocation):
    """max sum s_i z_i with sum z_i <= S units and sum f_i z_i <= F multiply-accumulates (FALCON: Meng et al. 2024,
    arXiv:2403.07094, with s_i = w_i^2).

    The Lagrangian of the second ceiling: the S units with the largest s_i - lambda f_i, those that are positive, for
    the smallest lambda at which F is met, by bisection. What is left of S and F is then filled with the best units that
    fit. The value is within two largest scores of the optimum, as the linear relaxation has at most two fractional
    units; where F does not bind, it is the global ranking and exact. S is `kept(density, all units, rounding)`, so no
    more stay, and fewer only where F allows no more. Scores are not negative.
    Cost: some hundred global selections at most; one traced run of the example (none for `params`).

    Attributes:
        share: F, as a share of what all scored units cost now.
        by: what f counts; for coupled units, what removing one alone saves.
        rounding: of S.
    """

    share: float = 0.5
    by: UnitCurrency = "macs"
    rounding: Rounding = "floor"
    scope: ClassVar[Literal["global", "local"]] = "global"

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0 or self.by not in get_args(UnitCurrency):
            raise SpecError(f"{self}: the share is in (0, 1], the cost one of {', '.join(get_args(UnitCurrency))}")

    def asks(self) -> Mapping[str, Evidence]:
        return {"cost": UnitCostEvidence(self.by)}

    def __call__(self, scores: Scores, density: float, space: Space, *, cost: Mapping[str, Tensor]) -> Masks:
        if not scores:
            return {}
        shapes = [s.numel() for s in scores.values()]
        s = torch.cat([g.double().reshape(-1).cpu() for g in protected(scores, space).values()])
        f = torch.cat([cost[n].double().reshape(-1).cpu() for n in scores])
        most = kept(density, len(s), self.rounding)
        ceiling = float(f.sum()) if density >= 1.0 else self.share * float(f.sum())
        keep = two_ceilings(s, f, most, ceiling)
        parts = zip(scores.items(), keep.split(shapes), strict=True)
        return respected(scores, {n: m.reshape(g.shape).to(g.device) for (n, g), m in parts}, space)


def two_ceilings(s: Float[Tensor, "n"], f: Float[Tensor, "n"], most: int, ceiling: float) -> Bool[Tensor, "n"]:
    """The units that stay, see `TwoConstraint`; those of infinite score in any case."""
    keep, price = _priced(s, f, most, 0.0), 0.0
    if float(f[keep].sum()) > ceiling:
        finite = s[s.isfinite() & (f > 0)]
        low, high = 0.0, float((finite.amax() if len(finite) else torch.tensor(0.0)) / f[f > 0].amin()) + 1.0
        for _ in range(HALVINGS):
            price = (low + high) / 2
            low, high = (low, price) if float(f[_priced(s, f, most, price)].sum()) <= ceiling else (price, high)
        price = high
        keep = _priced(s, f, most, price)
    return _filled(keep, s, f, most, ceiling, price)


def _priced(s: Tensor, f: Tensor, most: int, price: float) -> Tensor:
    worth = s - price * f
    return top_k([worth.masked_fill((worth <= 0) & (price > 0), -torch.inf)], most)[0]


def _filled(keep: Tensor, s: Tensor, f: Tensor, most: int, ceiling: float, price: float) -> Tensor:
    """With the best units that still fit, those of one cost at a time, where the best of them is worth most."""
    keep = keep.clone()
    costs = f.unique()
    while (room := most - int(keep.sum())) > 0:
        slack = ceiling - float(f[keep].sum())
        free = (~keep) & (s > -torch.inf) & (f <= slack + 1e-9 * max(1.0, ceiling))
        if not bool(free.any()):
            break
        worth = (s - price * f).masked_fill(~free, -torch.inf)
        one = float(f[worth.argmax()])
        several = min(room, int((slack + 1e-9 * max(1.0, ceiling)) / one)) if one > 0 else room
        # Of another cost, the next unit may be worth more than the last of these: as many as are better than all such.
        rival = worth.masked_fill(f == one, -torch.inf).amax() if len(costs) > 1 else torch.tensor(-torch.inf)
        better = (f == one) & free & (worth >= rival)
        keep |= top_k([worth.masked_fill(~better, -torch.inf)], several)[0]
    return keep
