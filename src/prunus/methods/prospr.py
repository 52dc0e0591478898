"""ProsPr."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import MetaSensitivity
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

prospr = Recipe(
    name="prospr",
    source="Alizadeh et al. 2022, ICLR, arXiv:2202.08132",
    granularity=Element(),
    criterion=MetaSensitivity(),
    allocate=GlobalRanking(),
    schedule=OneShot(),
)

card = Card(
    title="ProsPr",
    use_when="you prune before training and can afford to differentiate through a few steps of it",
    avoid_when="memory is short: all inner steps are kept; MetaSensitivity(first_order=True) keeps none",
    deviations=(
        "Evaluation mode, where the official code runs in training mode (MetaSensitivity(train_mode=True)); one "
        "calibration batch per step in turn."
    ),
    rows=(212,),
)
