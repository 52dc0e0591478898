"""Iterative SNIP."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import ConnectionSensitivity
from prunus.parts.granularity import Element
from prunus.parts.schedule import Iterative

iterative_snip = Recipe(
    name="iterative_snip",
    source="de Jorge et al. 2021, ICLR, arXiv:2006.09081 (Iter SNIP)",
    granularity=Element(),
    criterion=ConnectionSensitivity(),
    allocate=GlobalRanking(rounding="nearest"),
    schedule=Iterative(rounds=100),
)

card = Card(
    title="Iterative SNIP",
    use_when="you prune before training to high sparsity and can afford one gradient per round",
    avoid_when="the gradient of one batch is expensive: 100 rounds are 100 passes",
    deviations=(
        "Pruned weights never come back (FORCE, in the same paper, lets them). Scores in evaluation mode, as snip does."
    ),
    rows=(213, 214),
)
