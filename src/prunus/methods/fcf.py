"""Factorized convolutional filters."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import BoxBinary
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

fcf = Recipe(
    name="fcf",
    source="Li et al. 2019, CVPR (Compressing convolutional neural networks via factorized convolutional filters)",
    granularity=Channel(),
    criterion=LearnedGate(),
    allocate=Uniform(),
    schedule=OneShot(at=0.5),
    gate=BoxBinary(),
    on="pretrained",
)

card = Card(
    title="Factorized convolutional filters",
    use_when="you want to choose filters while you train them, with the count of each layer fixed in advance",
    avoid_when="you have few steps: the constraint tightens over hundreds of them",
    deviations=(
        "Factors act where a filter is read. Kept filters hold the value of their factor (one, once the "
        "constraint is met). The second half of the steps fine-tunes."
    ),
    rows=(18,),
)
