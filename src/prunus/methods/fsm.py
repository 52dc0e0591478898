"""Feature shift minimization (criterion)."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import FeatureShift
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

fsm = Recipe(
    name="fsm",
    source="Duan et al. 2022, ACCV, arXiv:2207.02632",
    granularity=Channel(),
    criterion=FeatureShift(),
    allocate=Uniform(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Feature shift minimization (criterion)",
    use_when="you prune channels of a trained network with batch normalization and relu, without data",
    avoid_when="there is no batch normalization with a shift",
    deviations=(
        "All layers at once at one share, where the paper prunes layer by layer with fine-tuning between. Its "
        "correction of the next layer's statistics is left out; recover=BatchNormRecalibration() re-estimates "
        "them from data."
    ),
    rows=(148,),
)
