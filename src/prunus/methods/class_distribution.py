"""Class-distribution magnitude."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import StdQuality
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

class_distribution = Recipe(
    name="class_distribution",
    source="See, Luong & Manning 2016, CoNLL, arXiv:1606.09274",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=StdQuality(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Class-distribution magnitude",
    use_when="a trained network is to be pruned at once, each layer by a threshold of its own scale",
    avoid_when=(
        "one ranking of all magnitudes does as well: in the paper class-blind (`magnitude`) was the best of three"
    ),
    deviations=(
        "A class is one weight matrix; the paper's classes of its translation networks (a layer of an LSTM, an "
        "embedding) are several matrices each."
    ),
    rows=(70,),
)
