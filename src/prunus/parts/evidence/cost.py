"""What units cost: multiply-accumulates, parameters, activations; read off one traced run, never off data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.evidence import Evidence, GroupTensors, Sources
from prunus.core.groups import Group, Member

UnitCurrency = Literal["macs", "params", "memory"]


@dataclass(frozen=True)
class UnitCostEvidence(Evidence):
    """What would be saved if a unit were the only one to go from now on, per sample of the example; float64.

    `params`: the entries of parameters that go with the unit. `macs`: the multiply-accumulates of these entries
    (products without parameters, as in attention, are not counted). `memory`: the activations that the unit's own
    weights put out, in numbers. Slices of units that are pruned already save nothing twice. Experts of which a token
    uses a fixed number save no multiply-accumulates. With `own`, only the weights that produce the unit count, so that
    every weight belongs to one layer. Cost: one traced run of the example for all but `params`.
    """

    currency: UnitCurrency = "macs"
    own: bool = False
    passes: ClassVar[str] = "one run of the example"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        prices = element_prices(sources, self.currency)
        keeps = kept_positions(sources)
        yield {g.name: self.of(g, prices, keeps, sources).unsqueeze(-1) for g in sources.groups}

    def of(
        self,
        group: Group,
        prices: Mapping[str, float],
        keeps: Mapping[tuple[str, int], Bool[Tensor, "size"]],
        sources: Sources,
    ) -> Float[Tensor, "*units"]:
        """`[*units]`: the cost of the units of one group."""
        device = sources.parameters[next(m.param for m in group.members if not m.buffer)].device
        cost = torch.zeros(group.shape, dtype=torch.float64, device=device)
        steady = getattr(group, "steady", ()) if self.currency == "macs" else ()
        only_out = self.own or self.currency == "memory"
        for m in group.members:
            if m.buffer or m.param in steady or (only_out and m.role != "out"):
                continue
            price, shape = prices.get(m.param, 0.0), tuple(sources.parameters[m.param].shape)
            if m.unit is not None:
                cost.view(-1)[m.unit] += price * prod(shape)
            else:
                cost += price * entries(m, shape, keeps, self.currency)
        return cost


def element_prices(sources: Sources, currency: UnitCurrency) -> dict[str, float]:
    """Cost of one entry of each parameter: 1, or at how many places of a run it is multiplied.

    Errors: `SpecError` where an example is needed and there is none.
    """
    if currency == "params":
        return dict.fromkeys(sources.parameters, 1.0)
    from prunus.graph import trace

    call = sources.task.example_inputs()
    if call is None:
        raise SpecError(f"what a unit costs in {currency} is read off one run: pass Task(example=...) or batches")
    macs = trace(sources.model, call[1] or call[0], probe=False).macs
    return {n: macs.get(n, 0) / p.numel() for n, p in sources.parameters.items() if p.numel()}


def kept_positions(sources: Sources) -> dict[tuple[str, int], Bool[Tensor, "size"]]:
    """Which positions are left along every axis of a parameter that units of some group lie along."""
    keeps: dict[tuple[str, int], Tensor] = {}
    for group in sources.groups:
        keep = sources.masks.get(group.name)
        for m in group.members:
            if keep is None or m.dim is None or m.param not in sources.parameters:
                continue
            axis = group.axis_keep(m, keep, sources.parameters[m.param].shape[m.dim])
            key = (m.param, m.dim)
            keeps[key] = keeps[key] & axis if key in keeps else axis
    return keeps


def entries(
    member: Member,
    shape: tuple[int, ...],
    keeps: Mapping[tuple[str, int], Bool[Tensor, "size"]],
    currency: UnitCurrency,
) -> int:
    """How many entries of a parameter each unit owns, and that are still there; for `memory` how many slices."""
    if member.tile is not None:
        return prod(member.tile)
    if member.dim is None:
        return 1
    each = 1 if member.index is None else member.index.shape[1]
    if currency == "memory":
        return each
    sizes = [int(keeps[member.param, d].sum()) if (member.param, d) in keeps else n for d, n in enumerate(shape)]
    return each * prod(n for d, n in enumerate(sizes) if d != member.dim)


UnitMacs = Annotated[Float[Tensor, "*units 1"], UnitCostEvidence("macs")]
"""`[*units, 1]`: multiply-accumulates that removing each unit saves, per sample of the example."""

UnitParams = Annotated[Float[Tensor, "*units 1"], UnitCostEvidence("params")]
"""`[*units, 1]`: entries of parameters that go with each unit."""

UnitMemory = Annotated[Float[Tensor, "*units 1"], UnitCostEvidence("memory")]
"""`[*units, 1]`: activations (numbers) that each unit's own weights put out, per sample of the example."""


CONSTANT = ""


@dataclass(frozen=True)
class CountCostEvidence(Evidence):
    """The whole model's cost as a polynomial of how many units each group keeps, exactly: float64.

    cost(c) = t[CONSTANT][0] + sum_l c_l (t[l][0] + sum_m t[l][1 + m] c_m), l and m over the groups in their order: a
    weight between two groups costs the product of what is left of both. Everything that no group touches, and products
    without parameters, are in the constant. Cost: one traced run of the example (none for `params`).
    Units that own whole parameters (blocks) cost nothing here. Errors: `SpecError` for a weight that lies along units
    on three axes.
    """

    currency: Literal["macs", "params"] = "macs"
    passes: ClassVar[str] = "one run of the example"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        order = {g.name: i for i, g in enumerate(sources.groups)}
        prices, constant = _prices_and_rest(sources, self.currency)
        linear, square = (
            torch.zeros(len(order), dtype=torch.float64),
            torch.zeros(len(order), len(order), dtype=torch.float64),
        )
        for name, p in sources.parameters.items():
            rest, axes = prices.get(name, 0.0), _axes(name, p, sources, order, self.currency)
            for d, n in enumerate(p.shape):
                rest *= 1 if d in axes else n
            if len(axes) > 2:
                raise SpecError(f"{name} lies along units on {len(axes)} axes; its cost is no product of two counts")
            rows = list(axes.values()) + [torch.tensor([1.0] + [0.0] * len(order), dtype=torch.float64)] * (
                2 - len(axes)
            )
            a, b = rows
            constant += rest * float(a[0] * b[0])
            linear += rest * (a[0] * b[1:] + b[0] * a[1:])
            square += rest * torch.outer(a[1:], b[1:])
        for group in sources.groups:
            for m in (m for m in group.members if m.dim is None and m.unit is None):  # single weights, blocks of them
                each = prices.get(m.param, 0.0) * prod(m.tile or (1,))
                linear[order[group.name]] += each
                constant -= each * group.units
        table = {n: torch.cat([linear[i : i + 1], square[i]]) for n, i in order.items()}
        yield table | {CONSTANT: torch.tensor([constant], dtype=torch.float64)}


def _prices_and_rest(sources: Sources, currency: UnitCurrency) -> tuple[dict[str, float], float]:
    if currency == "params":
        return element_prices(sources, currency), 0.0
    from prunus.graph import trace

    call = sources.task.example_inputs()
    if call is None:
        raise SpecError(f"what units cost in {currency} is read off one run: pass Task(example=...) or batches")
    found = trace(sources.model, call[1] or call[0], probe=False)
    prices = {n: found.macs.get(n, 0) / p.numel() for n, p in sources.parameters.items() if p.numel()}
    return prices, float(found.fixed_macs)


def _axes(
    name: str, p: Tensor, sources: Sources, order: Mapping[str, int], currency: UnitCurrency
) -> dict[int, Float[Tensor, "terms"]]:
    """Along each axis that units lie along: how many positions no unit owns, and how many each group's unit does."""
    axes: dict[int, Tensor] = {}
    for group in sources.groups:
        if currency == "macs" and name in getattr(group, "steady", ()):
            continue
        for m in group.members:
            if m.param != name or m.dim is None:
                continue
            row = axes.setdefault(m.dim, torch.zeros(len(order) + 1, dtype=torch.float64))
            each = 1 if m.index is None else m.index.shape[1]
            row[0] += (0 if row.any() else p.shape[m.dim]) - each * group.units
            row[1 + order[group.name]] += each
    return axes
