"""Gradual pruning by a rising threshold."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import TwoSlopes

narang = Recipe(
    name="narang",
    source="Narang et al. 2017, ICLR, arXiv:1704.05119",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=Uniform(),
    schedule=TwoSlopes(),
)

card = Card(
    title="Gradual threshold with two slopes",
    use_when="recurrent or linear layers are trained from scratch and one run has to do",
    avoid_when="the density on the way matters: it follows from the weights (gradual_magnitude sets it)",
    deviations=(
        "The final threshold is the one that meets the density at that moment, per weight, and not a percentile of "
        "a dense network trained before. Biases are not pruned."
    ),
    rows=(40,),
)
