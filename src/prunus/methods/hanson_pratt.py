"""Hyperbolic bias on units."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Channel
from prunus.parts.penalty import HyperbolicBias
from prunus.parts.schedule import OneShot

hanson_pratt = Recipe(
    name="hanson_pratt",
    source="Hanson & Pratt 1988, NeurIPS 1, Comparing biases for minimal network construction with back-propagation",
    granularity=Channel(),
    criterion=Magnitude(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.75),
    penalty=HyperbolicBias(),
)

card = Card(
    title="Hyperbolic bias",
    use_when="hidden layers are wider than they have to be and you train the network anyway",
    avoid_when="units have very many inputs: set the slope in proportion to one over their number",
    deviations=(
        "The budget says how many units go, at three quarters of the steps; in the paper those that have vanished do."
    ),
    rows=(41,),
)
