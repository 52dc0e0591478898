"""STUN: experts first, then single weights of those that are left."""

from dataclasses import replace
from typing import Any

from torch import nn

from prunus.core.budget import Budget
from prunus.core.card import Card
from prunus.core.errors import BudgetError
from prunus.core.procedure import procedure
from prunus.core.recipe import Recipe
from prunus.core.task import Task
from prunus.engine.prepare import find_groups
from prunus.engine.prune import prune
from prunus.engine.result import Result
from prunus.engine.sweep import inside
from prunus.engine.walk import blocks_in, chained
from prunus.methods.expert_clusters import expert_clusters
from prunus.methods.wanda import wanda


@procedure(
    source="Lee et al. 2025, ACL, arXiv:2409.06211", structure="unstructured", pace="iterative", scope="local",
    reads="inputs",
)  # fmt: skip
def stun(
    model: nn.Module,
    task: Task,
    budget: Budget,
    *,
    steps: int = 0,
    seed: int = 0,
    optimizer: Any = None,
    experts: float = 0.25,
    first: Recipe = expert_clusters,
    second: Recipe = wanda,
) -> Result:
    """Remove the fraction `experts` of the experts by `first` and cut them out; prune the rest by `second`, so that of
    all weights that `second` looks at in the whole model the budget is left.

    The result is about the model without those experts. `steps` train after the second stage.
    Errors: `BudgetError` for a budget that is none in weights, or that the experts alone exceed.
    """
    if budget.currency != "units":
        raise BudgetError(f"stun counts weights: give a sparsity, not a budget in {budget.currency}")
    thin = prune(model, task, first, sparsity=experts, seed=seed).compact()
    before, after = (weights(m, second, task) for m in (model, thin))
    if budget.keep * before > after:
        raise BudgetError(
            f"without {experts:.0%} of the experts {after} of {before} weights are left, fewer than {budget.keep:.0%}: "
            f"pass a smaller experts="
        )
    rest = Budget(density=budget.keep * before / after)
    found = replace(second, name="stun")
    return prune(thin, task, found, budget=rest, steps=steps, seed=seed, optimizer=optimizer)


def weights(model: nn.Module, recipe: Recipe, task: Task) -> int:
    """How many weights a recipe looks at: those in blocks, where it goes through these and they hold most of them."""
    groups = find_groups(model, recipe, task)
    every = sum(g.units for g in groups)
    if recipe.sweep == "model":
        return every
    blocks = blocks_in(model, task)
    own = {n: sum(g.units for g in inside(n, groups)) for n in blocks}
    there = 2 * sum(own[n] for n in chained(model, task, blocks)) >= every
    return sum(own.values()) if there else every


card = Card(
    title="Structured, then unstructured (STUN)",
    use_when="a mixture of many experts is to be as sparse as can be, and sparse weights are of use where it runs",
    avoid_when="zeros are of no use where it runs: take expert_clusters or reap alone",
    formula="one expert of each cluster by the router's rows, then |w| ||x|| within each row of what is left",
    deviations=(
        "The second stage is Wanda, one of the paper's two; second= takes another recipe (a layer-wise allocation such "
        "as OWL's is its allocate=)."
    ),
    rows=(206,),
)
