"""Functional clusters."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import FunctionalContribution
from prunus.parts.granularity import Channel
from prunus.parts.schedule import Gradual

functional_clusters = Recipe(
    name="functional_clusters",
    source="inspired by Qin et al. 2018, arXiv:1810.07322",
    granularity=Channel(),
    criterion=FunctionalContribution(),
    allocate=Uniform(),
    schedule=Gradual(end=0.5, power=1.0),
    on="pretrained",
)

card = Card(
    title="Functional clusters (inspired by Qin et al. 2018)",
    use_when="filters of a layer repeat each other and one of every kind should stay",
    avoid_when="calibration batches are so small that responses say little",
    deviations=(
        "Filters are clustered by their responses to the calibration data, in the paper by images that maximize "
        "their activation. In every layer the same share."
    ),
    rows=(186,),
)
