"""Random with SNIP's densities."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import SharesOf
from prunus.parts.criteria import ConnectionSensitivity, Random
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

snip_ratio_random = Recipe(
    name="snip_ratio_random",
    source="Liu et al. 2022, ICLR, arXiv:2202.02643",
    granularity=Element(),
    criterion=Random(),
    allocate=SharesOf(like=ConnectionSensitivity()),
    schedule=OneShot(),
)

card = Card(
    title="Random with SNIP's densities",
    use_when="you want to know how much of SNIP is in its layer densities",
    avoid_when="there is no labelled batch: erk_random needs none",
    deviations=(
        "SharesOf(like=GradientSignal()) takes GraSP's densities. The total is exact, where the official code "
        "draws weight by weight."
    ),
    rows=(13,),
)
