"""Filterlets (stripes) by magnitude."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Tile
from prunus.parts.schedule import OneShot

filterlet = Recipe(
    name="filterlet",
    source="Han et al. 2024, INFOCOM, arXiv:2401.09068; stripes: Meng et al. 2020, NeurIPS, arXiv:2009.14410",
    granularity=Tile((1, 0, 1, 1), skip_last=True),
    criterion=Magnitude(),
    allocate=GlobalRanking(normalize="mean"),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Filterlets (stripes) by magnitude",
    use_when="you deploy to a microcontroller whose kernels run over channels, and filters are too coarse",
    avoid_when="your layers are linear or 1x1: a filterlet is a whole filter there",
    deviations=(
        "One kernel position over all input channels of a filter, worth its L1 norm over the layer's mean, which is "
        "our choice; the classifier stays dense. The integer program that sets counts by latency and size, and the "
        "runtime, are not part of this recipe. SWP learns a skeleton over the same units instead."
    ),
    rows=(209,),
)
