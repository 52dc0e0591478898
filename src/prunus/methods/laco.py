"""LaCo."""

import copy
from typing import Any

from torch import nn

from prunus.core.budget import Budget
from prunus.core.card import Card
from prunus.core.counting import count
from prunus.core.procedure import procedure
from prunus.core.recipe import Recipe
from prunus.core.task import Task
from prunus.engine.collapse import collapse_
from prunus.engine.prune import prune
from prunus.engine.result import Result
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import SquaredMagnitude
from prunus.parts.granularity import Block
from prunus.parts.schedule import OneShot

SOURCE = "Yang, Cao & Zhao 2024, EMNLP, arXiv:2402.11187"
# What is left of a merged block is zero, and goes first.
LEFT = Recipe(
    name="laco", source=SOURCE, granularity=Block(), criterion=SquaredMagnitude(), allocate=GlobalRanking(),
    schedule=OneShot(), on="pretrained",
)  # fmt: skip


@procedure(source=SOURCE, structure="structured", reads="inputs")
def laco(
    model: nn.Module, task: Task, budget: Budget, *, steps: int = 0, seed: int = 0, optimizer: Any = None,
    merge: int = 3, interval: int = 2, threshold: float = 0.65, lowest: int = 1,
) -> Result:  # fmt: skip
    """Blocks are merged into one before them as long as what the last one puts out stays alike: see `collapse_`."""
    asked, merged, merges = prune(model, task, LEFT, budget=budget, seed=seed), copy.deepcopy(model), []
    for group in reversed(asked.groups):
        gone = group.units - count(asked.unit_masks[group.name])
        told = {"merge": merge, "interval": interval, "threshold": threshold, "lowest": lowest}
        merges += collapse_(merged, task, group, gone, **told)  # type: ignore[arg-type]
    result = prune(merged, task, LEFT, budget=budget, steps=steps, seed=seed, optimizer=optimizer)
    result.history[-1]["merges"] = merges
    return result


card = Card(
    title="LaCo (layer collapse)",
    use_when="layers of a language model are to go without training, and what they changed is to be kept in others",
    avoid_when="blocks of one container differ in their shapes",
    formula="w_l + sum over the merged ones of (w_{l+k} - w_l), where the cosine of the last hidden states is high",
    deviations=(
        "As many blocks go as the budget says: the paper's number follows from its threshold, which here falls by "
        "0.05 where a pass through the layers has merged too few. Several stacks share what the largest blocks of all "
        "would leave them."
    ),
    rows=(233,),
)
