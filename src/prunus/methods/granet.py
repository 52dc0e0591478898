"""GraNet."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.growth import GradientMagnitude
from prunus.parts.schedule import GradualPruneAndGrow

granet = Recipe(
    name="granet",
    source="Liu et al. 2021, NeurIPS, arXiv:2106.10404",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=GlobalRanking(),
    schedule=GradualPruneAndGrow(),
    grow=GradientMagnitude(),
)

card = Card(
    title="GraNet",
    use_when="training may begin dense, and pruning in the course of it should be able to correct itself",
    avoid_when="the dense model does not fit into memory for training",
    deviations=(
        "Begins dense (the paper's dense-to-sparse setting). Its sparse-to-sparse setting, half density with random "
        "masks by ERK that are then pruned across layers, is replace(granet, start=Random(), allocate=Begun(), "
        "schedule=GradualPruneAndGrow(initial=0.5))."
    ),
    rows=(29,),
)
