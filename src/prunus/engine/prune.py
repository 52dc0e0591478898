"""One call: a model in, a pruned model out."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from prunus.core.budget import Budget
from prunus.core.errors import DataError, PrunusWarning, SpecError
from prunus.core.procedure import Procedure
from prunus.core.recipe import Recipe
from prunus.core.task import Batch, Task
from prunus.engine.prepare import resolve_budget, resolve_task, unwrap
from prunus.engine.result import Result
from prunus.engine.session import Session
from prunus.graph.duplicate import duplicate

OnStep = Callable[[int, int, float], None]
OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def prune(
    model: nn.Module,
    task: Task | None = None,
    recipe: Recipe | Procedure | str = "magnitude",
    *,
    sparsity: float | None = None,
    budget: Budget | None = None,
    steps: int = 0,
    optimizer: OptimizerFactory | torch.optim.Optimizer | None = None,
    rate: Callable[[float], float] | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
    **options: Any,
) -> Result:
    """Prune a copy of `model` by a recipe; the model that was passed in is not changed.

    Args:
        model: any module.
        task: what the recipe reads and trains on; may be left out where it needs nothing.
        recipe: a recipe, a procedure, or a method's name (`prunus.methods.names()`, `prunus.methods.procedures()`).
        sparsity: fraction of the recipe's units to remove, in [0, 1).
        budget: instead of sparsity: `Budget(macs=0.5)`, `Budget(latency=0.6)`, `Budget(density=0.1)`.
        steps: optimizer steps on `task.train`: the training that the schedule is laid over, or fine-tuning after it.
        optimizer: `parameters -> optimizer`; or an optimizer over `model`'s parameters, whose class and settings are
            used for the copy. Left out: SGD, learning rate 0.01, momentum 0.9.
        rate: learning-rate factor as a function of progress in [0, 1) through the schedule; rewinding rewinds it.
        seed: the only source of randomness: while it trains, the global generators are forked and seeded with it.
        on_step: called after every step with (step, steps, loss).
        options: what a procedure takes beyond these; recipes take none.

    Returns: a `Result`.
    Errors: `SpecError`, `BudgetError`, `WeightsError`, `DataError`, `StructureError`, all before anything is changed.
    """
    from prunus import procedure_named

    source, task = unwrap(model), resolve_task(task)
    if (found := procedure_named(recipe)) is not None:
        asked = resolve_budget(found, sparsity, budget)
        ran: Result = found(source, task, asked, steps=steps, seed=seed, optimizer=optimizer, **options)
        return ran
    if options:
        raise SpecError(
            f"a recipe takes no {', '.join(sorted(options))}: its parts are edited with dataclasses.replace"
        )
    assert not isinstance(recipe, Procedure)
    pruned = duplicate(source)
    session = Session(pruned, recipe, task, budget, steps=steps, seed=seed, sparsity=sparsity)
    if steps == 0:
        if session.recipe.trains:
            warnings.warn(
                PrunusWarning(
                    f"{session.recipe.name} prunes while training, but steps=0: its events all run at once, with no "
                    f"training between them. Pass steps=N and Task(loss=..., train=...)"
                ),
                stacklevel=2,
            )
        session.start()
        result = session.result()
        if result.masks and result.sparsity == 0.0 and session.budget.keep < 1.0:
            warnings.warn(PrunusWarning(_nothing_pruned(result, session.budget.keep)), stacklevel=2)
        return result
    own = session.recipe.recover
    unlabelled = own is not None and own.throughout and own.reads != "labels"
    if task.train is None or (task.loss is None and not unlabelled):
        raise SpecError(f"steps={steps} trains: pass Task(loss=lambda model, batch: ..., train=batches)")
    opt = _optimizer_for(optimizer, source, pruned)
    _train(session, opt, task, rate, on_step)
    return session.result()


def _nothing_pruned(result: Result, keep: float) -> str:
    """Why a budget came to nothing, as groups of a few units let it."""
    most = max(g.units for g in result.groups)
    return (
        f"nothing was pruned: {keep:.4g} was to be kept, and no group can give up so little (the largest of "
        f"{len(result.groups)} has {most} units, of which whole ones go, or multiples of round_to). Ask for more, rank "
        f"over all layers (allocate=GlobalRanking()), or take smaller units"
    )


def _train(
    session: Session,
    opt: torch.optim.Optimizer,
    task: Task,
    rate: Callable[[float], float] | None,
    on_step: OnStep | None,
) -> None:
    model, steps = session.model, session.steps
    base = [float(g["lr"]) for g in opt.param_groups]
    flags = {m: m.training for m in model.modules()}
    batches = _cycle(task)
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    try:
        # Dropout and the order of the batches draw from the global generators: the run has its own.
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(session.seed)
            session.attach(opt)
            model.train()
            step, last = 0, steps
            while step < last:
                after = session.recovering
                if after is not None and after.began == step:
                    last = after.last = step + after.steps(steps - step)
                factor = None if after is None else after.rate(step)
                if factor is None and rate is not None:
                    factor = rate(min(session.clock / session.horizon, 1.0))
                if factor is not None:
                    for group, lr in zip(opt.param_groups, base, strict=True):
                        group["lr"] = lr * factor
                value = _step(session, opt, task, next(batches), step)
                step += 1
                if on_step is not None:
                    on_step(step, last, value)
    finally:
        session.detach()
        for module, was in flags.items():
            module.training = was


def _step(session: Session, opt: torch.optim.Optimizer, task: Task, batch: Batch, step: int) -> float:
    """One optimizer step; the loss."""
    opt.zero_grad(set_to_none=True)
    loss = session.loss(batch)
    loss.backward()
    value = float(loss.detach())
    if value != value or value in (float("inf"), float("-inf")):
        raise DataError(f"the loss became {value} at step {step}: lower the learning rate or look at the batch")
    opt.step()
    return value


def _cycle(task: Task) -> Iterator[Batch]:
    assert task.train is not None
    while True:
        empty = True
        for batch in task.train:
            empty = False
            yield batch
        if empty:
            raise DataError(
                "Task.train ran out of batches: pass something that can be iterated again (a list, a DataLoader)"
            )


def _optimizer_for(
    optimizer: OptimizerFactory | torch.optim.Optimizer | None, source: nn.Module, pruned: nn.Module
) -> torch.optim.Optimizer:
    """An optimizer over the copy's parameters."""
    parameters = [p for p in pruned.parameters() if p.requires_grad]
    if optimizer is None:
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
    if not isinstance(optimizer, torch.optim.Optimizer):
        made = optimizer(parameters)
        if not isinstance(made, torch.optim.Optimizer):
            raise SpecError(f"optimizer must make a torch optimizer from parameters, it made {type(made).__name__}")
        return made
    if [p.shape for p in source.parameters()] != [p.shape for p in pruned.parameters()]:
        raise SpecError(
            "the recipe writes modules anew before it prunes, so the optimizer holds parameters that are gone: pass a "
            "function from parameters to optimizer"
        )
    twin = {id(a): b for a, b in zip(source.parameters(), pruned.parameters(), strict=True)}
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        if any(id(p) not in twin for p in group["params"]):
            raise SpecError(
                "the optimizer holds parameters that are not the model's: pass one made for this model, or a function"
            )
        groups.append({**group, "params": [twin[id(p)] for p in group["params"]]})
    kind: Any = type(optimizer)
    made = kind(groups, **{k: v for k, v in optimizer.defaults.items() if k in _accepted(kind)})
    if not isinstance(made, torch.optim.Optimizer):
        raise SpecError(f"cannot rebuild {kind.__name__} for the copy: pass a function from parameters to optimizer")
    return made


def _accepted(kind: Any) -> set[str]:
    import inspect

    return set(inspect.signature(kind.__init__).parameters)
