"""A sensitivity scan: every group of a network pruned alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

import prunus
from prunus.core.errors import SpecError
from prunus.core.groups import Group
from prunus.core.recipe import Recipe
from prunus.core.task import Task
from prunus.engine.apply_ import apply_, parameter_masks
from prunus.engine.prepare import find_groups, resolve_recipe
from prunus.graph.duplicate import duplicate

Judge = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Scan:
    """One group, pruned alone at several sparsities.

    Attributes:
        group, kind, units: what it is, and of how many units.
        scores: what `judge` gave at every sparsity asked for, in order.
    """

    group: str
    kind: str
    units: int
    scores: tuple[float, ...]


def sensitivity(
    model: nn.Module,
    task: Task | None,
    recipe: Recipe | str,
    sparsities: Sequence[float],
    judge: Judge,
    *,
    seed: int = 0,
    told: Callable[[int, int], None] | None = None,
) -> tuple[float, tuple[Scan, ...]]:
    """The score of the whole network, and of it with each group alone pruned at each sparsity, nothing retrained
    (layers: Han et al. 2015, NeurIPS, arXiv:1506.02626, section 3; filters: Li et al. 2017, ICLR, arXiv:1608.08710).

    Args:
        task: what the recipe's criterion reads.
        recipe: gives the groups and their units' scores, worked out once, on the whole network.
        sparsities: shares of a group's units that go, lowest scores first, the earlier of equals first.
        judge: of a network in evaluation mode; higher is better.
        told: called with (groups done, groups in all).

    Cost: the criterion's, and a `judge` per group and sparsity; a copy of the model.
    Errors: `SpecError` for sparsities outside [0, 1) or a recipe that writes the network anew or learns its scores.
    Differs: constraints on which units go together (equal numbers in every part of a head, n of m) are not kept.
    """
    chosen = resolve_recipe(recipe)
    if not sparsities or not all(0 <= s < 1 for s in sparsities):
        raise SpecError(f"a scan takes sparsities in [0, 1), at least one; got {list(sparsities)}")
    if chosen.prepare is not None or chosen.gate is not None:
        raise SpecError(f"{chosen.name} does not score the network as it is: scan with magnitude, snip, l1_filter, ...")
    own = duplicate(model).eval()
    known = task if task is not None else Task()
    scores = prunus.score(own, known, chosen, seed=seed)
    groups = [g for g in find_groups(own, chosen, known) if g.name in scores]
    parameters = dict(own.named_parameters())
    whole, found = judge(own), []
    for i, group in enumerate(groups):
        order = scores[group.name].flatten().argsort(stable=True)
        found.append(_scanned(own, parameters, group, order, sparsities, judge))
        if told is not None:
            told(i + 1, len(groups))
    return whole, tuple(found)


def _scanned(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    group: Group,
    order: torch.Tensor,
    sparsities: Sequence[float],
    judge: Judge,
) -> Scan:
    touched = {m.param: parameters[m.param] for m in group.members if m.param in parameters}
    before, values = {n: p.detach().clone() for n, p in touched.items()}, []
    for sparsity in sparsities:
        mask = torch.ones(order.numel(), dtype=torch.bool, device=order.device)
        mask[order[: int(sparsity * order.numel() + 0.5)]] = False
        apply_(parameters, parameter_masks([group], {group.name: mask.view(group.shape)}, parameters))
        values.append(judge(model))
        with torch.no_grad():
            for name, value in before.items():
                parameters[name].copy_(value)
    return Scan(group.name, group.kind, order.numel(), tuple(values))
