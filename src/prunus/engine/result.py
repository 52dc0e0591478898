"""What pruning gives back: the only thing later stages (compacting, measuring, saving, reporting) take."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.budget import Budget
from prunus.core.counting import count
from prunus.core.errors import PrunusWarning, SpecError
from prunus.core.groups import Group
from prunus.core.part import Masks
from prunus.core.recipe import Recipe
from prunus.core.task import Example
from prunus.engine.hooks import Hooks, hookable
from prunus.graph.duplicate import duplicate


@dataclass(eq=False)
class Result:
    """A pruned model and how it came about.

    Attributes:
        model: the masked model: the user's class and shapes, pruned weights exactly zero.
        masks: parameter name -> bool of the parameter's shape, True = kept. Parameters without pruned units are
            included where a group touches them; all others are missing.
        groups: the groups that were ranked.
        unit_masks: group name -> bool of the group's shape.
        recipe: the method.
        budget: what was asked for.
        history: one record per event (step, density, kept and total units).
        skipped: group name -> why the recipe said nothing about it.
        collapsed: groups of which nothing is left.
        cost: wall-clock seconds and optimizer steps that it took.
        seed: the session's seed.
        example: one input, kept for compaction.
        edits: the structural changes of the last `compact`, as `prunus.save` records them.
        verified_error: the largest relative difference that the last verification found.
        statistics_error: the largest relative difference between the compact model and the masked one as it is, where
            normalizations forget removed positions (`Channel(exact=False)`); None where all groups are exact.
    """

    model: nn.Module
    masks: dict[str, Tensor]
    groups: tuple[Group, ...]
    unit_masks: Masks
    recipe: Recipe
    budget: Budget
    history: list[dict[str, Any]]
    skipped: dict[str, str]
    collapsed: tuple[str, ...]
    cost: dict[str, float]
    seed: int
    example: Example | None = None
    edits: tuple[Any, ...] = field(default=(), repr=False)
    verified_error: float | None = None
    statistics_error: float | None = None

    @property
    def sparsity(self) -> float:
        """Removed units over ranked units."""
        total = sum(m.numel() for m in self.unit_masks.values())
        return 1.0 - sum(count(m) for m in self.unit_masks.values()) / total

    @property
    def densities(self) -> dict[str, float]:
        """Kept fraction of the units of every ranked group."""
        return {n: count(m) / m.numel() for n, m in self.unit_masks.items()}

    @property
    def weight_sparsity(self) -> float:
        """Masked entries over all parameters of the model (the second denominator: nothing is left out)."""
        total = sum(p.numel() for p in self.model.parameters())
        return sum(m.numel() - count(m) for m in self.masks.values()) / total

    def compact(self, verify: bool = True, *, optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
        """A physically smaller model: the user's class with the removed channels cut out.

        verify: prove on the example, in float64, that it computes what the masked model computes.
        optimizer: what trained `model`; it trains the smaller model from now on, with what it remembers of the kept
            weights (`graph.compact_optimizer_`), so that training goes on without a jump. Detach the session first.
        Returns a new module; this result is not changed, but remembers the edits, which `prunus.save` records.
        Errors: `VerificationError` where the outputs differ, `StructureError` where an edit is impossible.
        Single-weight masks remove no whole unit: the model comes back as it is, with a warning.
        """
        from prunus import graph

        if optimizer is not None and _followed(optimizer):
            raise SpecError("a session follows this optimizer: call session.detach() before it trains a compact model")
        if self.recipe.structure != "structured":
            warnings.warn(
                PrunusWarning(
                    f"{self.recipe.name} is {self.recipe.structure}: no whole unit is gone, so the model "
                    f"keeps its shapes"
                ),
                stacklevel=2,
            )
            small = duplicate(self.model)
            if optimizer is not None:
                graph.compact_optimizer_(optimizer, self.model, small, ())
            return small
        if verify and self.example is None:
            raise SpecError("verification runs the model: pass Task(example=...) to prune, or compact(verify=False)")
        small, edits = graph.compact(self.model, self.groups, self.unit_masks, verify=False)
        if verify and self.example is not None:
            self.verified_error = graph.prove_compact(
                self.model, self.groups, self.unit_masks, small, edits, self.example
            )
            if any(getattr(group, "statistics", ()) for group in self.groups):
                self.statistics_error = graph.verify(self.model, small, self.example, tol=float("inf"))
        if optimizer is not None:
            graph.compact_optimizer_(optimizer, self.model, small, edits)
        self.edits = edits
        return small

    def to_dict(self) -> dict[str, Any]:
        """A JSON record: recipe, budget, both denominators, per-group densities, history."""
        parameters = dict(self.model.named_parameters())
        kept = sum(p.numel() for p in parameters.values()) - sum(m.numel() - count(m) for m in self.masks.values())
        return {
            "recipe": self.recipe.to_dict(),
            "taxonomy": self.recipe.taxonomy(),
            "budget": {k: v for k, v in vars(self.budget).items() if v is not None},
            "sparsity": self.sparsity,
            "weight_sparsity": self.weight_sparsity,
            "params_dense": sum(p.numel() for p in parameters.values()),
            "params_kept": kept,
            "densities": self.densities,
            "skipped": self.skipped,
            "collapsed": list(self.collapsed),
            "history": self.history,
            "cost": self.cost,
            "seed": self.seed,
        }

    def _repr_html_(self) -> str:
        units = sum(m.numel() for m in self.unit_masks.values())
        rows = "".join(f"<tr><td>{n}</td><td>{d:.1%}</td></tr>" for n, d in self.densities.items())
        return (
            f"<b>{self.recipe.name}</b>: {self.sparsity:.2%} of {units:,} units "
            f"removed<table><tr><th>group</th><th>kept</th></tr>{rows}</table>"
        )


def _followed(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a session is attached."""
    hooks = hookable(optimizer)._optimizer_step_pre_hooks.values()
    return any(isinstance(getattr(hook, "__self__", None), Hooks) for hook in hooks)


def effective_sparsity(parameters: Mapping[str, Tensor]) -> float:
    """Exact zeros over all entries, whatever any mask says."""
    total = sum(p.numel() for p in parameters.values())
    return sum(int((p == 0).sum()) for p in parameters.values()) / total if total else 0.0
