"""Random with uniform densities."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Random
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

uniform_random = Recipe(
    name="uniform_random",
    source="Liu et al. 2022, ICLR, arXiv:2202.02643",
    granularity=Element(),
    criterion=Random(),
    allocate=Uniform(),
    schedule=OneShot(),
)

card = Card(
    title="Random with uniform densities",
    use_when="you want the random baseline without any layer-wise densities",
    avoid_when="you want the strongest random baseline: erk_random",
    deviations="Counts are exact per layer; the official code draws masks weight by weight.",
    rows=(13,),
)
