"""Top-KAST."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Magnitude
from prunus.parts.gate import TopKast
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

top_kast = Recipe(
    name="top_kast",
    source="Jayakumar et al. 2020, NeurIPS, arXiv:2106.03517",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=Uniform(),
    schedule=OneShot(at=1.0),
    gate=TopKast(),
)

card = Card(
    title="Top-KAST (top-k always sparse training)",
    use_when="training should be sparse in both directions, with a margin in which weights compete",
    avoid_when="dense weights do not fit in memory: they are all there",
    deviations=(
        "Weights outside of the wider choice get no gradient, but the decay and the momentum of your optimizer go "
        "on there. No layer is left dense. Choices are renewed every ten steps."
    ),
    rows=(220,),
)
