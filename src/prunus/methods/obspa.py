"""OBSPA: structured pruning by optimal brain surgeon, without fine-tuning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import ObsSaliency
from prunus.parts.granularity import Coupled
from prunus.parts.reconstruct import LeastSquares
from prunus.parts.recover import BatchNormRecalibration
from prunus.parts.schedule import OneShot

obspa = Recipe(
    name="obspa",
    source="Wang, Rachwan, Guennemann & Charpentier 2024, arXiv:2403.18955",
    granularity=Coupled(),
    criterion=ObsSaliency(),
    allocate=GlobalRanking(normalize="mean"),
    reconstruct=LeastSquares(damp=0.01),
    recover=BatchNormRecalibration(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="OBSPA",
    use_when="you remove coupled channels of any network without labels and without training after it",
    avoid_when="you fine-tune anyway: then a cheaper criterion ends at the same place",
    deviations=(
        "Scores are summed over the layers that read a channel and compared across layers after division by their "
        "mean. Groups leave together and the rest is updated at once, which is least squares. Statistics come from the "
        "calibration batches, which may be noise (the paper's data-free form). No code is public, so the order of the "
        "steps follows the paper's description."
    ),
    rows=(149,),
)
