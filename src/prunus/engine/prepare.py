"""Everything that is checked before anything is changed."""

from collections.abc import Container
from dataclasses import replace

import torch
from torch import fx, nn

from prunus.core.budget import Budget
from prunus.core.errors import Problems, SpecError, StructureError, WeightsError, listed
from prunus.core.groups import Group
from prunus.core.procedure import Procedure
from prunus.core.recipe import Recipe
from prunus.core.task import Task
from prunus.engine.agreement import distributed
from prunus.engine.shards import whole
from prunus.engine.walk import called
from prunus.parts.granularity import Coupled


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside DistributedDataParallel, DataParallel or torch.compile wrappers."""
    if not isinstance(model, nn.Module):
        raise SpecError(f"a model is a torch.nn.Module, got {type(model).__name__}")
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def averaged(model: nn.Module, names: Container[str]) -> dict[str, nn.Parameter]:
    """The parameters of a copy of a model, by the names that they have in the model itself."""
    copy = unwrap(model)
    while isinstance(inner := getattr(copy, "module", None), nn.Module):
        if any(n in names for n, _ in copy.named_parameters()):
            break
        copy = unwrap(inner)
    return dict(copy.named_parameters())


def prepared(model: nn.Module, recipe: Recipe, task: Task) -> nn.Module:
    """The model as the recipe wants it, changed in place, its outputs the same."""
    if recipe.prepare is None:
        return model
    check_slots(recipe, task, None, 0)
    call = task.example_inputs()
    made: nn.Module = recipe.prepare(model, None if call is None else (call[1] or call[0]), task)
    if made is not model:
        raise SpecError(f"{type(recipe.prepare).__name__} must change the model in place and return it")
    return model


def resolve_recipe(recipe: Recipe | str) -> Recipe:
    """A recipe by name or as it is; an unknown name comes back with the nearest ones."""
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, str):
        raise SpecError(f"a recipe is a Recipe or the name of one, not {type(recipe).__name__}")
    from prunus import recipe_named

    return recipe_named(recipe)


def resolve_task(task: Task | None) -> Task:
    """The task, or an empty one; anything else is most likely a recipe in the wrong place."""
    if task is None:
        return Task()
    if not isinstance(task, Task):
        raise SpecError(
            f"the task must be a prunus.Task, got a {type(task).__name__}. The order is prune(model, task, recipe) and "
            f"score(model, task, recipe), but Session(model, recipe, task); name the arguments where in doubt"
        )
    return task


def resolve_budget(recipe: Recipe | Procedure, sparsity: float | None, budget: Budget | None) -> Budget:
    """The budget from whichever of the two was given; patterns such as 2:4 bring their own."""
    if sparsity is not None and budget is not None:
        raise SpecError("give sparsity or budget, not both")
    if sparsity is not None:
        return Budget.from_sparsity(sparsity)
    if isinstance(budget, Budget):
        return budget
    if budget is not None:
        raise SpecError(f"budget must be a prunus.Budget (such as Budget(0.1) or Budget(macs=0.5)), got {budget!r}")
    own = getattr(getattr(recipe, "allocate", None), "density", None)
    if isinstance(own, float):
        return Budget(density=own)
    raise SpecError(f"{recipe.name!r} needs to know how much: sparsity=0.9, Budget(0.1), Budget(macs=0.5)")


def solved(recipe: Recipe, budget: Budget, task: Task) -> Recipe:
    """The recipe with the allocation that meets its budget: for one in latency a knapsack takes the place of a ranking
    of channels, unless the budget says otherwise (`Budget.solver`).
    """
    if budget.currency != "latency" or budget.solver == "own" or not isinstance(recipe.granularity, Coupled):
        return recipe
    return replace(recipe, allocate=recipe.allocate.timed(task.clock is None and not distributed()))


def find_groups(model: nn.Module, recipe: Recipe, task: Task) -> tuple[Group, ...]:
    """The recipe's groups on this model, or an error that says why there are none."""
    if not isinstance(task, Task):
        raise SpecError(
            f"a task is a prunus.Task (such as Task(loss=..., train=batches)), got {type(task).__name__}: "
            f"wrap the loss and the batches in one"
        )
    example = task.example_inputs()
    inputs = None if example is None else (example[1] or example[0])
    groups = recipe.granularity(model, inputs)
    if not groups:
        by: dict[str, list[str]] = {}
        for name, reason in recipe.granularity.reasons(model, inputs).items():
            by.setdefault(reason, []).append(name)
        why = [f"{reason} ({listed(names, 3)})" for reason, names in sorted(by.items(), key=lambda i: -len(i[1]))]
        raise StructureError(
            f"{type(recipe.granularity).__name__} finds nothing to prune in {type(model).__name__}: "
            f"{'; '.join(why[:5]) or 'it has no such weights'}{_elsewhere(model, recipe)}"
        )
    return groups


def _elsewhere(model: nn.Module, recipe: Recipe) -> str:
    """Where units may be found that the model's own class does not offer."""
    if recipe.granularity.structure != "structured" or isinstance(model, fx.GraphModule):
        return ""
    return (
        ". Where sizes are written into a forward (heads in a reshape, torch.nn.MultiheadAttention), "
        "prunus.graph.exported(model, example) gives the same model as a graph that offers them"
    )


def check_weights(model: nn.Module, groups: tuple[Group, ...]) -> None:
    """Refuse weights that cannot be ranked; every bad tensor is named with its count."""
    problems = Problems("these weights cannot be ranked")
    names = dict.fromkeys(m.param for g in groups for m in g.members if not m.buffer)
    parameters = dict(model.named_parameters())
    if hollow := [n for n in names if parameters[n].is_meta]:
        problems.add(
            f"{listed(hollow)} have no values here, they are on the meta device. Where accelerate keeps weights on the "
            f"CPU or disk until they are used, prune the folder, a block in memory at a time "
            f"(prunus.stream.prune_folder), or load all of them onto devices"
        )
    for name in (n for n in names if n not in set(hollow)):
        p = whole(parameters[name]).detach()
        # One reduction per tensor, in its own type (the fastest): a non-finite entry makes the sum non-finite, and only
        # then is it counted; a sum that merely overflows finds none.
        if p.is_floating_point() and not torch.isfinite(p.sum()):
            bad = int((~torch.isfinite(p)).sum())
            if bad:
                problems.add(f"{name!r} holds {bad} NaN or infinite values of {p.numel()}; repair or reload it first")
    problems.raise_if_any(WeightsError)


def check_slots(recipe: Recipe, task: Task, groups: tuple[Group, ...] | None, steps: int) -> None:
    """Refuse a task that lacks what the recipe asks for; groups are None where they are still to be made."""
    problems = Problems(f"cannot run {recipe.name!r}")
    # Growth is left out: it goes by the gradients of the training step at hand, which are there in any loop.
    scoring = recipe.scores_from
    part = task.forward is called
    if scoring == "labels" and task.loss is None and not part:
        problems.add("it scores with gradients of the loss: pass Task(loss=lambda model, batch: ...)")
    if scoring != "nothing" and task.calib is None and task.train is None:
        problems.add("it scores with data: pass Task(calib=batches) or Task(train=batches)")
    if task.general is None and any(getattr(e, "general", False) for e in recipe.criterion.asks().values()):
        problems.add("it weighs the task against what the model should stay good at: pass Task(general=batches)")
    if recipe.recover is not None and recipe.recover.trains and (task.train is None or task.loss is None):
        problems.add("it trains afterwards: pass Task(loss=lambda model, batch: ..., train=batches)")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        problems.add(f"steps={steps!r} must be a whole number of optimizer steps, 0 or more")
    if part and (recipe.allocate.foresees() or scoring == "labels"):
        problems.add("this is a block of a model, and it wants to see the whole model first: prune that, in memory")
    fits = getattr(recipe.allocate, "fits", None)
    if fits is not None and groups is not None and not any(fits(g.shape, g.weight) for g in groups):
        problems.add(f"{recipe.allocate} fits no layer: no row length is a multiple of its block")
    problems.raise_if_any(SpecError)
