"""DeepLIFT pruning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import AbsoluteAttribution
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

deeplift = Recipe(
    name="deeplift",
    source="Sabih et al. 2020, arXiv:2008.09072",
    granularity=Channel(),
    criterion=AbsoluteAttribution(),
    allocate=GlobalRanking(normalize="max"),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="DeepLIFT pruning",
    use_when="you have inputs but no labels, and want units kept for what they contribute to decisions",
    avoid_when="most of the network is attention: the multipliers are then nothing but gradients",
    deviations=(
        "Pruning only: the paper also gives less important layers fewer bits. Contributions to the largest output"
        " instead of the true class. Each layer over its largest."
    ),
    rows=(146,),
)
