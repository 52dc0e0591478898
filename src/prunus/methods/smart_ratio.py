"""Smart-ratio random tickets."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import SmartRatio
from prunus.parts.criteria import Random
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

smart_ratio = Recipe(
    name="smart_ratio",
    source="Su et al. 2020, NeurIPS, arXiv:2009.11094",
    granularity=Element(),
    criterion=Random(),
    allocate=SmartRatio(),
    schedule=OneShot(),
)

card = Card(
    title="Smart-ratio random tickets",
    use_when="you want to know whether a criterion finds more than good layer-wise densities",
    avoid_when="the network is not a plain stack of convolutions the ratios were made for",
    deviations=(
        "For VGG the paper also divides by the square of the depth: SmartRatio(decay=True). The official code "
        "keeps 0.3 of every linear layer, here of the last; its counts are cut layer by layer, here the total is "
        "exact."
    ),
    rows=(4,),
)
