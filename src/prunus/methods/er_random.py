"""Random with Erdos-Renyi densities."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import ERK
from prunus.parts.criteria import Random
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

er_random = Recipe(
    name="er_random",
    source="Liu et al. 2022, ICLR, arXiv:2202.02643; densities: Mocanu et al. 2018, arXiv:1707.04780",
    granularity=Element(),
    criterion=Random(),
    allocate=ERK(kernel=False),
    schedule=OneShot(),
)

card = Card(
    title="Random with Erdos-Renyi densities",
    use_when="you want a random baseline whose dense layers are the thin ones",
    avoid_when="the network is small: random tickets fall behind",
    deviations="The total is exact; the official densities miss it by up to two weights per layer.",
    rows=(13,),
)
