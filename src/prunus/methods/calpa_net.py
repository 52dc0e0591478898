"""A network's widths found by pruning, for training from scratch."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import SensitivityScan
from prunus.parts.criteria import GreedyReconstruction
from prunus.parts.granularity import Channel
from prunus.parts.recover import Scratch
from prunus.parts.schedule import OneShot

calpa_net = Recipe(
    name="calpa_net",
    source="Tan et al. 2020, IEEE TIFS, arXiv:1911.04657",
    granularity=Channel(),
    criterion=GreedyReconstruction(),
    allocate=SensitivityScan(),
    schedule=OneShot(),
    recover=Scratch(),
    on="pretrained",
)

card = Card(
    title="Inspired by CALPA-NET",
    use_when="an over-wide network is to be made slender layer by layer, and you will train the result anew",
    avoid_when="you cannot train from scratch: the weights are thrown away, only the widths stay",
    deviations=(
        "The paper shrinks layers by a hybrid of ThiNet and an L1 norm scheme, whose combination we could not read up: "
        "here ThiNet's order cuts each layer as far as raises the loss alike, then the network is trained from scratch."
    ),
    rows=(207,),
)
