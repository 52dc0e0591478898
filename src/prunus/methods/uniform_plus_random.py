"""Random with uniform+ densities."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import UniformPlus
from prunus.parts.criteria import Random
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

uniform_plus_random = Recipe(
    name="uniform_plus_random",
    source="Liu et al. 2022, ICLR, arXiv:2202.02643; densities: Gale et al. 2019, arXiv:1902.09574",
    granularity=Element(),
    criterion=Random(),
    allocate=UniformPlus(),
    schedule=OneShot(),
)

card = Card(
    title="Random with uniform+ densities",
    use_when="you want a random baseline that spares the first convolution and the classifier",
    avoid_when="the network is small: random tickets fall behind",
    deviations="The total is exact; the official densities come to another total once a layer is set apart.",
    rows=(13,),
)
