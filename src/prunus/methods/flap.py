"""FLAP."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import WeightedFluctuation
from prunus.parts.granularity import Coupled
from prunus.parts.reconstruct import BiasCompensation
from prunus.parts.schedule import OneShot

flap = Recipe(
    name="flap",
    source="An et al. 2024, AAAI, arXiv:2312.11983",
    granularity=Coupled(),
    criterion=WeightedFluctuation(),
    allocate=GlobalRanking(normalize="standard"),
    reconstruct=BiasCompensation(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="FLAP",
    use_when="you remove heads and neurons from a few unlabelled batches, and their readers have a bias",
    avoid_when="the readers have no bias: there is nowhere for the mean of what goes, and a warning names them",
    deviations=(
        "The code adds a bias to the layers that have none; here they stay without. Heads and neurons are compared as "
        "they are; the code weighs a head's score by the size of what goes with it. `flap_heads` does both."
    ),
    rows=(232,),
)
