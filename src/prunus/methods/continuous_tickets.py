"""Tickets by continuous sparsification in rounds."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import Annealed
from prunus.parts.granularity import Element
from prunus.parts.schedule import Relearned

continuous_tickets = Recipe(
    name="continuous_tickets",
    source="Savarese, Silva & Maire 2020, NeurIPS, arXiv:1912.04427",
    granularity=Element(),
    criterion=LearnedGate(),
    allocate=GlobalRanking(),
    schedule=Relearned(),
    gate=Annealed(),
)

card = Card(
    title="Tickets by continuous sparsification",
    use_when="you look for lottery tickets, and rounds of iterative magnitude take too long",
    avoid_when="one round of training is all there is: see `continuous_sparsification`",
    deviations=(
        "The budget says how many stay, of those with the largest gates (the paper keeps what came out positive); "
        "only the last round prunes. The ticket is not multiplied by the factor of the official code. All rounds "
        "share the given steps."
    ),
    rows=(165,),
)
