"""Pruning instability: what accuracy loses in the moment of pruning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import prunus
from prunus.core.budget import Budget
from prunus.core.errors import DataError, SpecError
from prunus.core.recipe import Recipe
from prunus.core.task import Task
from prunus.engine.apply_ import apply_
from prunus.engine.prepare import resolve_recipe
from prunus.graph.duplicate import duplicate
from prunus.measure.derivatives import finite

Judge = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Drop:
    """One pruning event: the optimizer step it follows, the density it leaves, and the score around it."""

    step: int
    density: float
    before: float
    after: float

    @property
    def instability(self) -> float:
        """The score lost at once; below zero where pruning helped at once."""
        return self.before - self.after


@dataclass(frozen=True)
class Stability:
    """A whole run.

    Attributes:
        drops: its events, in order.
        final: the score after the last step.
    """

    drops: tuple[Drop, ...]
    final: float

    @property
    def mean(self) -> float:
        """Instability over the events."""
        return sum(d.instability for d in self.drops) / len(self.drops)


def stability(
    model: nn.Module,
    task: Task,
    recipe: Recipe | str,
    budget: Budget | None,
    judge: Judge,
    *,
    steps: int,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    rate: Callable[[float], float] | None = None,
    seed: int = 0,
    on_step: Callable[[int, int, float], None] | None = None,
) -> Stability:
    """Train a copy under a recipe and score it right before and right after every event that prunes (pruning
    instability, the drop of test accuracy immediately following pruning: Bartoldson et al. 2020, NeurIPS,
    arXiv:1906.03728, who find that it goes with better generalization afterwards).

    Args:
        judge: of a network in evaluation mode (test accuracy in the paper; held-out data leave the test data unseen).
        rate: learning-rate factor by progress in [0, 1), as of `prunus.prune`.

    Cost: that of the run, and two `judge` per event.
    Errors: `SpecError` for a recipe with a recovery or gates of its own, or whose events only mark; `DataError` for a
        loss that is not finite.
    """
    chosen = resolve_recipe(recipe)
    if chosen.recover is not None or chosen.gate is not None:
        raise SpecError(
            f"{chosen.name} trains in its own way between events: take a schedule, such as gradual_magnitude"
        )
    own = duplicate(model)
    session = prunus.Session(own, chosen, task, budget, steps=steps, seed=seed)
    due = {e.step for e in session.events if not e.mark}
    if not due:
        raise SpecError(f"{chosen.name} has no event that prunes in {steps} steps")
    made = optimizer([p for p in session.model.parameters() if p.requires_grad])
    base, before, drops = [float(g["lr"]) for g in made.param_groups], dict[int, float](), list[Drop]()

    def score() -> float:
        session.model.eval()
        try:
            return judge(session.model)
        finally:
            session.model.train()

    def about_to(*_: Any) -> None:
        """After the weights moved, before the session prunes: torch calls hooks in the order of registration."""
        if session.step + 1 in due:
            if session.holding:
                apply_(session.parameters, session.applied)  # what momentum moved is no part of the network
            before[session.step + 1] = score()

    def after(step: int) -> None:
        if step in due:
            kept = [int(m.sum()) for m in session.masks.values()]
            density = sum(kept) / sum(m.numel() for m in session.masks.values())
            drops.append(Drop(step, density, before[step], score()))

    handle, batches = made.register_step_post_hook(about_to), _cycle(task)
    try:
        with torch.random.fork_rng(devices=sorted({p.device.index for p in own.parameters() if p.is_cuda})):
            torch.manual_seed(seed)
            session.model.train()
            before[0] = score() if 0 in due else 0.0
            session.attach(made)
            after(0)
            for step in range(steps):
                if rate is not None:
                    factor = rate(min(session.clock / session.horizon, 1.0))
                    for group, lr in zip(made.param_groups, base, strict=True):
                        group["lr"] = lr * factor
                made.zero_grad(set_to_none=True)
                loss = session.loss(next(batches))
                value = finite(loss)
                loss.backward()
                made.step()
                after(step + 1)
                if on_step is not None:
                    on_step(step + 1, steps, value)
            return Stability(tuple(drops), score())
    finally:
        session.detach()
        handle.remove()


def _cycle(task: Task) -> Iterator[Any]:
    if task.train is None:
        raise SpecError("pruning is watched while the network trains: pass Task(loss=..., train=batches)")
    while True:
        empty = True
        for batch in task.train:
            empty = False
            yield batch
        if empty:
            raise DataError("Task.train yields no batch, or can be read only once")
