"""How many units of every group are to stay under a ceiling on the model's cost: the duals of a training under it."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.evidence import Evidence, GroupTensors, RunningEvidence, Sources
from prunus.parts.evidence.cost import CONSTANT, CountCostEvidence
from prunus.parts.evidence.fitted import FittedCostEvidence

SLACK = 1e-3


class QuotaEvidence(RunningEvidence):
    """`[2]`: s and y of each group, how many units it may keep and the multiplier of that constraint, in a descent and
    ascent on them beside the training of the weights (ECC: Yang, Zhu & Liu 2019, CVPR, arXiv:1812.01803, section 4).

    E(s) is the cost of the model as a share of the dense one's, B that of what the recipe's allocation would keep at
    the beginning for the next event. At every step, with c the units whose readers are not all zero: y is cut down to
    what spares the s largest (`held_back`); s, as a share of its group, goes down the gradient of
    rho_z / 2 (E(s) - B)_+^2 + sum rho_y / 2 (c - s)_+^2 + y (c - s) + z E(s), where it is positive, its norm at most
    `clip`, by `pace`; z is first raised so far that some s goes down. Then y grows by rho_y (c - floor s) and z by
    rho_z (E(s) - B), not below zero. All of it ends when E(c) is at most B.

    The asking part's fields: `by` (macs, params: exact; clock: fitted, see `FittedCostEvidence`), `samples`, `rho_y`,
    `rho_z`, `pace`, `clip`. Undefined where nothing reads a unit. Cost: that of `by` once, a sort per group and step.
    """

    reads = "nothing"
    key: ClassVar[str] = "quota"
    roles = ("in",)

    def renew(self, store: dict[str, Tensor], sources: Sources) -> None:
        told = sources.settings
        groups = [g for g in sources.groups if g.with_role("in") and g.movable]
        keys = [f"{g.members[0].param}|{g.name}" for g in groups]
        if not groups or (not store and sources.choose is None):
            return
        whole = torch.tensor([float(g.units) for g in groups], dtype=torch.float64)
        weights = {n: p.detach() for n, p in sources.parameters.items()}
        energy = [g.views(g.with_role("in"), weights).square().sum(-1).flatten() for g in groups]
        if not store:
            assert sources.choose is not None
            kept = sources.choose(None)
            for k, row in zip(keys, shares(sources, [g.name for g in groups], told), strict=True):
                store[f"{k}|cost"] = row.to(energy[0].device)
            cost = torch.stack([store[f"{k}|cost"].cpu() for k in keys])
            ceiling = price(cost, torch.tensor([float(kept[g.name].sum()) for g in groups], dtype=torch.float64))
            store[f"{keys[0]}|z"] = torch.tensor([0.0, float(ceiling)], dtype=torch.float64)
            for k, n in zip(keys, whole, strict=True):
                store[k] = torch.tensor([float(n), 0.0], dtype=torch.float64)
            return
        cost = torch.stack([store[f"{k}|cost"].cpu() for k in keys])
        z, ceiling = store[f"{keys[0]}|z"].cpu()
        alive = torch.stack([(a > 0).sum().double().cpu() for a in energy])
        if price(cost, alive) <= ceiling:
            return
        s, y = torch.stack([store[k].cpu() for k in keys]).unbind(1)
        rate, rho = float(sources.rate or 0.0), (float(told["rho_y"]), float(told["rho_z"]))
        y = torch.stack([held_back(a, n, m, rho[0], rate) for a, n, m in zip(energy, s, y, strict=True)])
        least = torch.tensor([float(max(1, g.at_least)) for g in groups], dtype=torch.float64)
        s, z = lowered(s, y, z, alive, whole, least, cost, ceiling, rho, float(told["pace"]), float(told["clip"]))
        y = (y + rho[0] * (alive - s.floor())).clamp(min=0)
        z = (z + rho[1] * (price(cost, s) - ceiling)).clamp(min=0)
        store[f"{keys[0]}|z"] = torch.stack([z, ceiling]).to(energy[0].device)
        for k, now, dual in zip(keys, s, y, strict=True):
            store[k] = torch.stack([now, dual]).to(energy[0].device)

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield self.by_group(sources, sources.parameters)

    def by_group(self, sources: Sources, tensors: Mapping[str, Tensor]) -> GroupTensors:
        store = sources.running.get(self.key, {})
        keys = {g.name: f"{g.members[0].param}|{g.name}" for g in sources.groups}
        return {n: store[k] for n, k in keys.items() if k in store}


def shares(sources: Sources, names: list[str], told: Mapping[str, Any]) -> Float[Tensor, "groups terms"]:
    """`[groups, 2 + groups]`: a constant (the same in every row), and each group's row of the cost's polynomial, as
    shares of the dense model's cost. Groups that have no quota count as whole.
    """
    evidence: Evidence = (
        FittedCostEvidence(samples=int(told["samples"])) if told["by"] == "clock" else CountCostEvidence(told["by"])
    )
    table = next(iter(evidence.collect(sources)))
    order = [g.name for g in sources.groups]
    rows = torch.stack([table[n].cpu() for n in order])
    linear, square = rows[:, 0], (rows[:, 1:] + rows[:, 1:].T) / 2
    units = torch.tensor([float(g.units) for g in sources.groups], dtype=torch.float64)
    mine = torch.tensor([order.index(n) for n in names])
    others = torch.tensor([i for i, n in enumerate(order) if n not in names], dtype=torch.int64)
    dense = float(table[CONSTANT]) + linear @ units + units @ square @ units
    fixed = units[others]
    constant = float(table[CONSTANT]) + linear[others] @ fixed + fixed @ square[others][:, others] @ fixed
    along = linear[mine] + 2 * square[mine][:, others] @ fixed
    parts = [constant.expand(len(names)).unsqueeze(1), along.unsqueeze(1), square[mine][:, mine]]
    return torch.cat(parts, dim=1) / dense


def price(cost: Float[Tensor, "groups terms"], counts: Float[Tensor, "groups"]) -> Float[Tensor, ""]:
    """The cost of so many units, by the rows of `shares`."""
    return cost[0, 0] + cost[:, 1] @ counts + counts @ cost[:, 2:] @ counts


def lowered(
    s: Float[Tensor, "groups"],
    y: Float[Tensor, "groups"],
    z: Float[Tensor, ""],
    alive: Float[Tensor, "groups"],
    whole: Float[Tensor, "groups"],
    least: Float[Tensor, "groups"],
    cost: Float[Tensor, "groups terms"],
    ceiling: Float[Tensor, ""],
    rho: tuple[float, float],
    pace: float,
    clip: float,
) -> tuple[Float[Tensor, "groups"], Float[Tensor, ""]]:
    """s after its step, and the z that it was made with."""
    steep = (cost[:, 1] + 2 * cost[:, 2:] @ s) * whole
    pull = rho[1] * (price(cost, s) - ceiling).clamp(min=0) * steep - whole * (rho[0] * (alive - s).clamp(min=0) + y)
    free = (s > least) & (steep > 0)
    if bool(free.any()):
        z = torch.maximum(z, ((SLACK - pull.clamp(max=0)) / steep)[free].min())
    slope = (pull + z * steep).clamp(min=0).masked_fill(~free, 0.0)
    slope = slope * (clip / slope.norm().clamp(min=clip))
    return torch.maximum(s - pace * slope * whole, least), z


def held_back(
    energy: Float[Tensor, "units"], s: Float[Tensor, ""], y: Float[Tensor, ""], rho: float, rate: float
) -> Float[Tensor, ""]:
    """y, or as much of it as leaves the floor(s) largest units alone (ECC, the projection after a step of the weights).

    energy: squared norms.
    """
    count = max(1, min(len(energy), int(s)))
    last = energy.sort(descending=True).values[count - 1].double().cpu()
    return y if rate == 0 else torch.minimum(y.cpu(), last / (2 * rate))


Quota = Annotated[Float[Tensor, "2"], QuotaEvidence()]
"""`[2]`: how many units a group may keep, and the multiplier of that constraint."""
