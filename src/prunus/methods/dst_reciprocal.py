"""Dynamic sparse training that drops by reciprocal sensitivity."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import ERK
from prunus.parts.criteria import Random, ReciprocalSensitivity
from prunus.parts.granularity import Element
from prunus.parts.growth import RandomGrowth
from prunus.parts.schedule import PruneAndGrow

dst_reciprocal = Recipe(
    name="dst_reciprocal",
    source="Nowak et al. 2023, NeurIPS, arXiv:2306.12230",
    granularity=Element(),
    criterion=ReciprocalSensitivity(),
    allocate=ERK(),
    schedule=PruneAndGrow(every=100, until=0.75, drop=0.5),
    start=Random(),
    grow=RandomGrowth(),
)

card = Card(
    title="Dynamic sparse training, reciprocal sensitivity",
    use_when="drop criteria of dynamic sparse training are compared",
    avoid_when="accuracy is what counts: the study finds magnitude better at low density",
    deviations=(
        "Gradients are those of the calibration batches at the update; the study uses the training batch's. How much "
        "is dropped how often differs between its experiments; growth by the gradient is replace(dst_reciprocal, "
        "grow=GradientMagnitude())."
    ),
    rows=(164,),
)
