"""Dynamic sparse training that drops by weight and gradient together."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import ERK
from prunus.parts.criteria import MagnitudeAndGradient, Random
from prunus.parts.granularity import Element
from prunus.parts.growth import RandomGrowth
from prunus.parts.schedule import PruneAndGrow

dst_magnitude_gradient = Recipe(
    name="dst_magnitude_gradient",
    source="Nowak et al. 2023, NeurIPS, arXiv:2306.12230; criterion: Yuan et al. 2021, NeurIPS, arXiv:2110.14032",
    granularity=Element(),
    criterion=MagnitudeAndGradient(),
    allocate=ERK(),
    schedule=PruneAndGrow(every=100, until=0.75, drop=0.5),
    start=Random(),
    grow=RandomGrowth(),
)

card = Card(
    title="Dynamic sparse training, weight and gradient",
    use_when="small weights that are about to grow should survive an update",
    avoid_when="gradients are much larger than weights, so that weights no longer matter: lower `factor`",
    deviations=(
        "Gradients are those of the calibration batches at the update; the study uses the training batch's. How much "
        "is dropped how often differs between its experiments; growth by the gradient is "
        "replace(dst_magnitude_gradient, grow=GradientMagnitude()). Of MEST this is the drop criterion alone, without "
        "its elastic drop rate and its soft memory bound."
    ),
    rows=(164,),
)
