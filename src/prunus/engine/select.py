"""From scores and a budget to masks: the allocation decides who stays, this module how many fit."""

import math
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prunus.core.budget import Budget
from prunus.core.counting import count
from prunus.core.errors import BudgetError, CollapseWarning, PrunusWarning, listed
from prunus.core.groups import Group
from prunus.core.part import Allocation, Masks
from prunus.engine.cost import Cost, check_physical
from prunus.engine.latency import Latency
from prunus.engine.nested import moved


def select(
    scores: Mapping[str, Tensor],
    allocation: Allocation,
    budget: Budget,
    groups: tuple[Group, ...],
    cost: Cost | Latency | None,
    given: Mapping[str, Any] | None = None,
) -> Masks:
    """Masks by group name, as many units as the budget allows.

    A budget in units goes to the allocation as it is. One in parameters, MACs or bytes is met by bisection over the
    number of kept units: the most that stay under the ceiling, whatever multiples and minima the groups demand. Where
    several groups would grow in one step (a uniform density passes a whole unit of many equal layers at once) and all
    of them together are too much, as many as fit do, in the network's order. Where an allocation gives a layer less
    although more units stay in all (smart-ratio may), what comes out fits, but something larger might as well. One in
    latency is met by measuring along the allocation's line (`Latency.search`). An allocation that solves
    for a currency by itself is left to (`afford`), and its answer is priced. `given` is what the allocation asked to be
    told beyond the scores.

    Errors: `BudgetError` where even the fewest units are too many, or where units are single weights and the currency
    bytes or latency. Warns of groups that are too small for the multiple they are asked for.
    """
    if len({s.device for s in scores.values()}) > 1:
        return _gathered(scores, allocation, budget, groups, cost, given)
    space = {g.name: g for g in groups}
    warn_too_small(groups)
    allocate = partial(allocation, **(given or {}))
    if budget.currency == "units" or cost is None:
        return allocate(scores, budget.keep, space)
    check_physical(budget.currency, groups)
    if getattr(allocation, "density", None) is not None:
        raise BudgetError(
            f"{allocation} has one density of its own; a budget in {budget.currency} cannot be met with it"
        )
    total = sum(s.numel() for s in scores.values())
    if budget.currency == allocation.pays:
        found = allocation.afford(scores, budget.keep, space, **(given or {}))
        if isinstance(cost, Cost) and (fraction := cost.fraction(groups, found)) > budget.keep + 1e-9:
            raise BudgetError(f"{allocation} was to keep {budget} and found masks that cost {fraction:.4g}")
        return found
    if isinstance(cost, Latency):
        along = allocation.line(scores, space, **(given or {}))
        return cost.search(lambda k: along(k / total), total, budget.keep, groups)

    def at(k: int) -> tuple[Masks, float]:
        masks = allocate(scores, k / total, space)
        return masks, cost.fraction(groups, masks)

    low, high = 0, total
    best, fraction = at(0)
    if fraction > budget.keep + 1e-12:
        raise BudgetError(
            f"{budget.keep:.4g} of the {budget.currency} cannot be met: with every group at its minimum "
            f"{fraction:.4g} is left. Ask for more, or let more be pruned (exclude, at_least, granularity)"
        )
    while high - low > 1:
        middle = (low + high) // 2
        masks, fraction = at(middle)
        if fraction <= budget.keep + 1e-12:
            low, best = middle, masks
        else:
            high = middle
    above, fraction = at(high)
    if fraction <= budget.keep + 1e-12:
        return above
    for name in best:
        grown = best | {name: above[name]}
        if cost.fraction(groups, grown) <= budget.keep + 1e-12:
            best = grown
    return best


def _gathered(
    scores: Mapping[str, Tensor],
    allocation: Allocation,
    budget: Budget,
    groups: tuple[Group, ...],
    cost: Cost | Latency | None,
    given: Mapping[str, Any] | None,
) -> Masks:
    """What `select` finds for a model that lies on several devices: on one of them, and then each mask on its own."""
    place = next(iter(scores.values())).device
    here, told = {n: s.to(place) for n, s in scores.items()}, moved(dict(given or {}), place)
    found = select(here, allocation, budget, groups, cost, told)
    return {n: m.to(scores[n].device) for n, m in found.items()}


def warn_too_small(groups: tuple[Group, ...]) -> None:
    """Say which groups stay whole because they have fewer units than the multiple that they are to keep."""
    small = [f"{g.name} ({g.units} {g.kind}s)" for g in groups if g.units < math.lcm(g.multiple, g.parts)]
    if small:
        warnings.warn(
            PrunusWarning(
                f"these groups have fewer units than the multiple they are to keep and stay whole: {listed(small)}. "
                f"Use a smaller round_to where they should be pruned as well"
            ),
            stacklevel=3,
        )


def collapsed(masks: Masks, was: Mapping[str, Tensor] | None = None, groups: tuple[Group, ...] = ()) -> tuple[str, ...]:
    """The groups of which nothing is left (and something was before); blocks may all go, other entries stay."""
    blocks = {g.name for g in groups if g.kind in ("block", "branch")}
    return tuple(
        n
        for n, m in masks.items()
        if n not in blocks and m.numel() and not count(m) and (was is None or n not in was or count(was[n]))
    )


def warn_collapse(names: tuple[str, ...], recipe: str) -> None:
    """Say that layers were emptied, before it is done."""
    if names:
        warnings.warn(
            CollapseWarning(
                f"layer collapse: {recipe} leaves no weight in {listed(names)}, so no signal passes. Remove less, "
                f"prune in several rounds (schedule=Iterative(rounds=100)), or use an allocation that protects layers "
                f"(ERK, LAMP)"
            ),
            stacklevel=3,
        )


def all_kept(groups: tuple[Group, ...], parameters: Mapping[str, Tensor]) -> Masks:
    """The dense model's masks: one True spread over each shape, which takes no memory. Not to be written to."""
    devices = {g.name: parameters[g.members[0].param].device for g in groups}
    return {g.name: torch.ones((), dtype=torch.bool, device=devices[g.name]).expand(g.shape) for g in groups}
