"""Iterative magnitude with learning-rate rewinding."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import Rounds

lr_rewinding = Recipe(
    name="lr_rewinding",
    source="Renda, Frankle & Carbin 2020, ICLR, arXiv:2003.02389",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=GlobalRanking(),
    schedule=Rounds(what="rate"),
)

card = Card(
    title="Iterative magnitude with learning-rate rewinding",
    use_when="you want the accuracy of lottery tickets without going back to initial weights",
    avoid_when="you cannot replay the learning-rate schedule",
    deviations="Needs a learning-rate schedule to rewind (prune(rate=...), or attach(optimizer, scheduler)).",
    rows=(50,),
)
