"""Supermasks: the likeliest of learned Bernoulli masks over random weights."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import Bernoulli
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

supermask = Recipe(
    name="supermask",
    source="Zhou et al. 2019, NeurIPS, arXiv:1905.01067",
    granularity=Element(),
    criterion=LearnedGate(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=1.0),
    gate=Bernoulli(),
)

card = Card(
    title="Supermask (learned Bernoulli mask)",
    use_when="you ask what weights that were never trained can do, and layers should find their own density",
    avoid_when="you want the best accuracy: trained weights do better",
    deviations=(
        "The paper judges by ten random masks of whatever density they have; here the likeliest weights stay, "
        "exactly to the budget. Weights are not turned into signed constants and not rescaled by their share."
    ),
    rows=(10,),
)
