"""Magnitude at initialization."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

magnitude_at_init = Recipe(
    name="magnitude_at_init",
    source="baseline; Frankle et al. 2021, ICLR, arXiv:2009.08576",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=GlobalRanking(),
    schedule=OneShot(),
)

card = Card(
    title="Magnitude at initialization",
    use_when="you want the baseline that every method of pruning before training has to beat",
    avoid_when="layers are initialized at different scales: the smallest one goes first",
    deviations="",
    rows=(14,),
)
