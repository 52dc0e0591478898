"""Continuous sparsification in one round."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import Annealed
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

continuous_sparsification = Recipe(
    name="continuous_sparsification",
    source="Savarese, Silva & Maire 2020, NeurIPS, arXiv:1912.04427",
    granularity=Element(),
    criterion=LearnedGate(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.5),
    gate=Annealed(),
)

card = Card(
    title="Continuous sparsification",
    use_when="the network is trained from scratch anyway, and masks may be learned along with it",
    avoid_when="the network must not be trained",
    deviations=(
        "The budget says how many stay, of those with the largest gates (the paper keeps what came out positive). "
        "Kept weights take the values that they were used with; the official code multiplies all of them by one "
        "factor. The second half of the steps trains what is left."
    ),
    rows=(165,),
)
