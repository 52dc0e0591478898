"""Random pruning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import Random
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

random = Recipe(
    name="random",
    source="baseline; Liu et al. 2022, ICLR, arXiv:2202.02643",
    granularity=Element(),
    criterion=Random(),
    allocate=GlobalRanking(),
    schedule=OneShot(),
)

card = Card(
    title="Random pruning",
    use_when="you want the floor every other method has to beat",
    avoid_when="you want accuracy: every informed criterion should do better",
    deviations="",
    rows=(13, 14),
)
