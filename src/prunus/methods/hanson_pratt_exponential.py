"""Exponential bias on units."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Channel
from prunus.parts.penalty import ExponentialBias
from prunus.parts.schedule import OneShot

hanson_pratt_exponential = Recipe(
    name="hanson_pratt_exponential",
    source="Hanson & Pratt 1988, NeurIPS 1, Comparing biases for minimal network construction with back-propagation",
    granularity=Channel(),
    criterion=Magnitude(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.75),
    penalty=ExponentialBias(),
)

card = Card(
    title="Exponential bias",
    use_when="hidden layers are wider than they have to be and large units should be left alone",
    avoid_when="units have very many inputs, where the bias is flat: set the slope to about one over their number",
    deviations=(
        "The budget says how many units go, at three quarters of the steps; in the paper those that have vanished do."
    ),
    rows=(41,),
)
