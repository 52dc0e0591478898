"""SNIP without data."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import NoiseSensitivity
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

snip_data_free = Recipe(
    name="snip_data_free",
    source="Lee, Ajanthan & Torr 2019, ICLR, arXiv:1810.02340; without labels: Lee et al. 2020, ICLR, arXiv:1906.06307",
    granularity=Element(),
    criterion=NoiseSensitivity(),
    allocate=GlobalRanking(rounding="nearest"),
    schedule=OneShot(),
)

card = Card(
    title="SNIP without data",
    use_when="you prune a classifier before training and there is no data yet, only the shape of an input",
    avoid_when=(
        "the last axis of the model's output are not classes, or labelled data is there: snip is a little better"
    ),
    deviations=(
        "Standard normal inputs and random labels in evaluation mode; comparisons that speak of SNIP without data"
        " rarely say which labels. NoiseSensitivity(labels='uniform') compares the outputs with the uniform "
        "distribution instead. Token ids stay those of the example."
    ),
    rows=(
        1,
        7,
    ),
)
