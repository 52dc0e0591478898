"""Dynamic sparse training that drops by what SNIP measures."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import ERK
from prunus.parts.criteria import ConnectionSensitivity, Random
from prunus.parts.granularity import Element
from prunus.parts.growth import RandomGrowth
from prunus.parts.schedule import PruneAndGrow

dst_snip = Recipe(
    name="dst_snip",
    source="Nowak et al. 2023, NeurIPS, arXiv:2306.12230; criterion: Lee et al. 2019, ICLR, arXiv:1810.02340",
    granularity=Element(),
    criterion=ConnectionSensitivity(),
    allocate=ERK(),
    schedule=PruneAndGrow(every=100, until=0.75, drop=0.5),
    start=Random(),
    grow=RandomGrowth(),
)

card = Card(
    title="Dynamic sparse training, connection sensitivity",
    use_when="drop criteria of dynamic sparse training are compared",
    avoid_when="accuracy is what counts: the study finds magnitude better at low density",
    deviations=(
        "Gradients are those of the calibration batches at the update; the study uses the training batch's, and adds "
        "1e-5 so that kept weights without a gradient outrank pruned ones, which are never ranked here. How much is "
        "dropped how often differs between its experiments; growth by the gradient is replace(dst_snip, "
        "grow=GradientMagnitude())."
    ),
    rows=(164,),
)
