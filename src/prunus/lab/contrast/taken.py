"""Masks of one run in the network of another: what is removed, and how the recipes that take them over find them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

import prunus
from prunus.core.budget import Budget
from prunus.core.errors import StructureError
from prunus.core.recipe import Recipe
from prunus.core.task import Task
from prunus.engine.transfer import renamed, stretched
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import Magnitude

Masks = Mapping[str, Tensor]


def carried(masks: Masks, model: nn.Module, ranked: set[str]) -> dict[str, Tensor]:
    """The masks under the names of `model`, whose blocks may be more or fewer: see `prunus.engine.transfer.stretched`.

    ranked: the weights of `model` that may be pruned; each needs a counterpart, and there may be no other.

    Raises:
        StructureError: a weight that has none, or one of another shape; a mask that nothing takes over.
    """
    weights = {n: p for n, p in model.named_parameters() if n in ranked}
    path = stretched(masks, weights)
    source = {n: renamed(n, path) for n in weights}
    for name, old in source.items():
        if old not in masks or masks[old].shape != weights[name].shape:
            found = tuple(masks[old].shape) if old in masks else "not there"
            raise StructureError(
                f"the masks that are taken over do not fit: {name!r} is {tuple(weights[name].shape)}, the mask of "
                f"{old!r} is {found}"
            )
    if (left := sorted(set(masks) - set(source.values()))) and not path:
        raise StructureError(f"the masks that are taken over do not fit: nothing here takes the one of {left[0]!r}")
    return {n: masks[old].clone() for n, old in source.items()}


def settled(model: nn.Module, task: Task, recipe: Recipe, masks: Masks, seed: int) -> tuple[nn.Module, Recipe, Budget]:
    """A copy of the model that is zero where masks of another run say so, the recipe that keeps it so while it trains,
    and the density of that.

    The recipe ranks the weights by magnitude at the density that the masks have, so what is zero goes first. Where its
    allocation shuffles, it decides first, and its masks are the ones that are kept.

    Raises:
        StructureError: masks that do not fit, or weights that are zero where they are to be kept.
    """
    ranked = {m.param for g in recipe.granularity(model, task.example) for m in g.members}
    found = carried(masks, model, ranked)
    if not isinstance(recipe.allocate, GlobalRanking):
        bare = replace(recipe, recover=None)
        found = dict(prunus.prune(zeroed(model, found), task, bare, budget=density(found), seed=seed).masks)
    held = replace(recipe, criterion=Magnitude(), allocate=GlobalRanking(rounding="nearest"))
    ready = zeroed(model, found)
    for name, p in ready.named_parameters():
        if name in found and bool(((p == 0) & found[name].to(p.device)).any()):
            raise StructureError(f"weights of {name!r} are zero where the masks keep them: nothing tells them apart")
    return ready, held, density(found)


def zeroed(model: nn.Module, masks: Masks) -> nn.Module:
    """A copy with zeros where masks are False."""
    ready = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in ready.named_parameters():
            if name in masks:
                p.mul_(masks[name].to(p.device))
    return ready


def density(masks: Masks) -> Budget:
    """What the masks keep, as a budget."""
    return Budget(density=sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values()))
