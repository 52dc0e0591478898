"""FreeTickets."""

from dataclasses import replace
from typing import Any

from torch import nn

from prunus.core.budget import Budget
from prunus.core.card import Card
from prunus.core.errors import SpecError
from prunus.core.procedure import procedure
from prunus.core.recipe import Recipe
from prunus.core.task import Task
from prunus.engine.ensemble import together
from prunus.engine.prune import prune
from prunus.engine.result import Result
from prunus.parts.allocation import ERK
from prunus.parts.criteria import Magnitude, Random
from prunus.parts.granularity import Element
from prunus.parts.growth import RandomGrowth
from prunus.parts.schedule import Escaping, PruneAndGrow

SOURCE = "Liu et al. 2022, ICLR, arXiv:2106.14568"
EXPLORATION = Recipe(
    name="free_tickets",
    source=SOURCE,
    granularity=Element(),
    criterion=Magnitude(),
    allocate=ERK(),
    schedule=PruneAndGrow(every=1000, until=1.0, drop=0.5, decay="none"),
    start=Random(),
    grow=RandomGrowth(),
)


@procedure(
    source=SOURCE,
    structure="unstructured",
    when="during",
    how="learned",
    pace="prune_and_grow",
    scope="local",
    on="initialized",
)
def free_tickets(
    model: nn.Module,
    task: Task,
    budget: Budget,
    *,
    steps: int = 0,
    seed: int = 0,
    optimizer: Any = None,
    tickets: int = 3,
    explore: float = 1 / 3,
    escape: float = 0.8,
    base: Recipe = EXPLORATION,
) -> Result:
    """Efficient dynamic sparse training: one run of `base` explores for the fraction `explore` of the steps at the full
    learning rate; then `tickets` cycles of equal length, at a tenth and in their second half a hundredth of it, leave a
    sparse network each. Every cycle but the first begins by dropping and regrowing the share `escape`.
    """
    if tickets < 1 or not 0.0 <= explore < 1.0:
        raise SpecError(f"free_tickets(tickets={tickets}, explore={explore}): at least one ticket, 0 <= explore < 1")
    first = round(explore * steps)
    explored = prune(model, task, base, budget=budget, steps=first, seed=seed, optimizer=optimizer)
    # What is kept is what is largest: the masks stay what they are, as zeros come last.
    going = replace(base, start=None)
    found: list[Result] = []
    for i in range(tickets):
        recipe = replace(going, schedule=Escaping(of=base.schedule, drop=escape)) if i else going
        cycle = (steps - first) * (i + 1) // tickets - (steps - first) * i // tickets
        before = found[-1].model if found else explored.model
        told = {"budget": budget, "steps": cycle, "seed": seed + i + 1, "optimizer": optimizer, "rate": refining}
        found.append(prune(before, task, recipe, **told))
    result = together([replace(r, recipe=base) for r in found])
    return replace(result, cost={k: v + explored.cost[k] for k, v in result.cost.items()}, seed=seed)


def refining(progress: float) -> float:
    """The learning-rate factor in a cycle."""
    return 0.1 if progress < 0.5 else 0.01


card = Card(
    title="FreeTickets: ensembles by efficient dynamic sparse training",
    use_when="you would train an ensemble, and have the steps for about one dense network",
    avoid_when="one network is wanted, or the network puts out anything but class scores",
    formula="log of the mean of the softmax outputs of sparse networks from the cycles of one run",
    deviations=(
        "The result's model is the ensemble, every member at the sparsity asked for. Members are the networks at the "
        "ends of the cycles, there the best on held-out data within them. Each cycle has an optimizer of its own, so "
        "momentum restarts as well as the learning rate."
    ),
    rows=(31,),
)
