"""Comprehensive graph gradual pruning, of weights."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.growth import GradientMagnitude
from prunus.parts.schedule import GradualPruneAndGrow

cgp = Recipe(
    name="cgp",
    source="Liu et al. 2022, arXiv:2207.08629",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=Uniform(),
    schedule=GradualPruneAndGrow(every=10, drop=0.1),
    grow=GradientMagnitude(),
)

card = Card(
    title="Comprehensive graph gradual pruning (CGP), the weights",
    use_when="you train a graph network once and want its weights sparse at the end, without retraining",
    avoid_when="the graph is what costs: its edges and the columns of its features are not pruned here",
    deviations=(
        "Weights only: the paper sparsifies edges and feature columns of the graph by the same schedule, which are "
        "inputs and not parameters. The official code was not at hand: how often it prunes and what share it regrows "
        "are this recipe's own choice."
    ),
    rows=(199,),
)
