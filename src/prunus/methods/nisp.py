"""NISP."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import NeuronImportance
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

nisp = Recipe(
    name="nisp",
    source="Yu et al. 2018, CVPR, arXiv:1711.05908",
    granularity=Channel(),
    criterion=NeuronImportance(),
    allocate=Uniform(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="NISP",
    use_when="you want one unlabelled pass to rank all channels by what the last features are worth",
    avoid_when=(
        "the network does not end in a linear classifier, or signs cancel: the propagation knows absolute weights only"
    ),
    deviations=(
        "The same share in every layer; the paper sets ratios by hand. Propagation as the gradient in the network"
        " of absolute values; max pooling passes importance to its largest input of an all-ones image."
    ),
    rows=(222,),
)
