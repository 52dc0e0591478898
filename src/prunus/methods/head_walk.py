"""Heads by a random walk."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import StationaryHead
from prunus.parts.granularity import Head
from prunus.parts.schedule import OneShot

head_walk = Recipe(
    name="head_walk",
    source="inspired by Yin et al. 2023, AAAI, arXiv:2301.05345",
    granularity=Head(),
    criterion=StationaryHead(),
    allocate=Uniform(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Heads by a random walk (inspired by GOHSP)",
    use_when="you remove heads of a vision transformer without labels",
    avoid_when="a layer has two heads: they are visited equally often",
    deviations=(
        "The ranking of heads alone. Transition probabilities are proportional to the cosine of what heads put "
        "out, since those of the paper could not be verified; its soft pruning and the optimization over columns "
        "are not part of it."
    ),
    rows=(190,),
)
