"""Neuron merging."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Channel
from prunus.parts.reconstruct import Merge
from prunus.parts.schedule import OneShot

neuron_merging = Recipe(
    name="neuron_merging",
    source="Kim et al. 2020, NeurIPS, arXiv:2010.13160",
    granularity=Channel(),
    criterion=Magnitude(),
    allocate=Uniform(),
    reconstruct=Merge(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Neuron merging",
    use_when="channels resemble each other (after centripetal training they are equal) and no training follows",
    avoid_when="you have the data to fit all remaining weights: LeastSquares is never worse on it",
    deviations=(
        "Which kept channel takes over, and times what, is read off the calibration inputs, whatever lies between; "
        'Merge(like="weights") is the paper\'s rule for networks without normalization. The merge at the end of '
        "centripetal SGD (arXiv:1904.03837) is this one; its training is the method c_sgd."
    ),
)
