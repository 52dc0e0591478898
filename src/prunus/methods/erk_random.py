"""Random with ERK densities."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import ERK
from prunus.parts.criteria import Random
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

erk_random = Recipe(
    name="erk_random",
    source="Liu et al. 2022, ICLR, arXiv:2202.02643; densities: Evci et al. 2020, arXiv:1911.11134",
    granularity=Element(),
    criterion=Random(),
    allocate=ERK(),
    schedule=OneShot(),
)

card = Card(
    title="Random with ERK densities",
    use_when="the network is large and you want the strongest random baseline",
    avoid_when="the network is small: random tickets fall behind",
    deviations="The total is exact; the official densities miss it by up to two weights per layer.",
    rows=(13,),
)
