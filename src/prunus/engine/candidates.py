"""The best of several draws: each pruned without training, judged by its loss, the best one carried out."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from prunus.core.budget import Budget
from prunus.core.errors import DataError, SpecError
from prunus.core.recipe import Recipe
from prunus.core.task import Task
from prunus.engine.prune import prune
from prunus.engine.result import Result


def best_draw(
    model: nn.Module,
    task: Task,
    base: Recipe,
    budget: Budget,
    *,
    candidates: int,
    steps: int = 0,
    seed: int = 0,
    optimizer: Any = None,
) -> Result:
    """The draw of `base.allocate` whose pruned network has the smallest loss on the calibration batches, carried out.

    Candidates are draws seed * candidates and on; of equals the first is taken. Their losses are noted as `candidates`
    in the last record of the history. Cost: one prune without training and one forward over the batches per candidate.
    Errors: `SpecError` without a loss or a candidate, and for an allocation that draws nothing; `DataError` without
    batches.
    """
    if task.loss is None:
        raise SpecError("candidates are judged by their loss: pass Task(loss=lambda model, batch: ...)")
    if candidates < 1:
        raise SpecError(f"candidates={candidates}: at least one is needed to choose from")
    if not hasattr(base.allocate, "draw"):
        raise SpecError(f"{base.allocate} draws nothing: base.allocate has to have a `draw`, as RandomWidths() has")
    allocate: Any = base.allocate
    draws = range(seed * candidates, (seed + 1) * candidates)
    recipes = [replace(base, allocate=replace(allocate, draw=i)) for i in draws]
    losses = [loss_of(prune(model, task, r, budget=budget, seed=seed).model, task) for r in recipes]
    best = recipes[losses.index(min(losses))]
    result = prune(model, task, best, budget=budget, steps=steps, seed=seed, optimizer=optimizer)
    result.history[-1]["candidates"] = losses
    return result


@torch.no_grad()
def loss_of(model: nn.Module, task: Task) -> float:
    """The mean loss over the calibration batches, in evaluation mode; the model is the caller's to throw away."""
    model.eval()
    losses = [float(task.loss_of(model, batch)) for batch in task.calibration()]
    if not losses:
        raise DataError("the calibration data yields no batch: pass at least one in Task(calib=...)")
    return sum(losses) / len(losses)
