"""Magnitude with ERK densities."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import ERK
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

magnitude_erk = Recipe(
    name="magnitude_erk",
    source="densities: Evci et al. 2020, ICML, arXiv:1911.11134",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=ERK(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Magnitude with ERK densities",
    use_when="sparsity is high and global magnitude empties layers",
    avoid_when="the network is wide and shallow: ERK spends the budget on small layers",
    deviations="The total is exact; the official densities miss it by up to two weights per layer.",
)
