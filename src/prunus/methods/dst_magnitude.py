"""Dynamic sparse training that drops by magnitude."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import ERK
from prunus.parts.criteria import Magnitude, Random
from prunus.parts.granularity import Element
from prunus.parts.growth import RandomGrowth
from prunus.parts.schedule import PruneAndGrow

dst_magnitude = Recipe(
    name="dst_magnitude",
    source="Nowak et al. 2023, NeurIPS, arXiv:2306.12230",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=ERK(),
    schedule=PruneAndGrow(every=100, until=0.75, drop=0.5),
    start=Random(),
    grow=RandomGrowth(),
)

card = Card(
    title="Dynamic sparse training, magnitude",
    use_when="you train sparse from scratch at low density: of six drop criteria the study finds none better",
    avoid_when="drop criteria are compared at high density, where the study finds little difference",
    deviations=(
        "How much is dropped how often differs between the study's experiments; growth by the gradient is "
        "replace(dst_magnitude, grow=GradientMagnitude()). The sixth criterion, by sign, is that of `set`."
    ),
    rows=(164,),
)
