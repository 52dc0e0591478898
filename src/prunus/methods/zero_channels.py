"""Zero-channel pruning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LiveShare
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

zero_channels = Recipe(
    name="zero_channels",
    source="An et al. 2020, arXiv:2006.09029",
    granularity=Channel(),
    criterion=LiveShare(),
    allocate=GlobalRanking(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Zero-channel pruning",
    use_when=(
        "many channels of a trained ReLU network are never active on your data: removing them changes nothing there"
    ),
    avoid_when=(
        "activations are smooth, or there are fewer such channels than the budget removes: what else goes is as "
        "good as arbitrary"
    ),
    deviations=(
        "The budget decides how many channels go; the paper removes those that are zero for most images of the "
        "encoder of a style-transfer network, and trains a decoder for it."
    ),
    rows=(184,),
)
